"""FLSimulation: run a federation and watch it.

>>> from flsimulation import load_experiment, run
>>> result = run(load_experiment("experiments/default.toml"))  # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Set before PyTorch loads OpenMP: waiting threads must sleep. By default they spin, which makes two
# concurrent runs on two cores extremely slow; a single run loses some speed (docs/decisions/0004).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from flsimulation.errors import FLSimulationError, InputError, RunError
    from flsimulation.experiment import Experiment, load_experiment
    from flsimulation.rundir import RunResult
    from flsimulation.runner import load_model, resume, run

__version__ = "0.1.0"

__all__ = [
    "Experiment",
    "FLSimulationError",
    "InputError",
    "RunError",
    "RunResult",
    "__version__",
    "load_experiment",
    "load_model",
    "resume",
    "run",
]

_HOMES = {
    "FLSimulationError": "errors",
    "InputError": "errors",
    "RunError": "errors",
    "Experiment": "experiment",
    "load_experiment": "experiment",
    "RunResult": "rundir",
    "load_model": "runner",
    "resume": "runner",
    "run": "runner",
}


def __getattr__(name: str) -> Any:
    """Import on first use: Lightning alone takes seconds, and ``flsim --help`` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flsimulation.internals.deferred import uncollected

    with uncollected():
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
