"""One call from an experiment to a finished run directory, wherever the experiment runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flsimulation.events import Sink
from flsimulation.experiment import Experiment
from flsimulation.rundir import RunRecord, RunResult
from flsimulation.runtimes import open_runtime


def run(
    experiment: Experiment,
    out: str | Path | None = None,
    sinks: Iterable[Sink] = (),
    opened: Callable[[Path], None] | None = None,
) -> RunResult:
    """Run an experiment where its ``runtime`` says, and leave a run directory with a report.

    On a network the run directory is where the SuperLink runs, below its working directory; sinks
    take every event but the checkpoints.

    Parameters
    ----------
    experiment : Experiment
        From `load_experiment`, or built in Python.
    out : path, optional
        The run directory; by default ``runs/<utc-time>-<name>``.
    sinks : iterable of callables
        Each takes every event of the run.
    opened : callable, optional
        Takes the run directory as soon as it exists.

    Raises
    ------
    InputError
        If the experiment's data, model or runtime is not available; no run directory is left then.
    RunError
        If the federation could not go on; the run directory says how far it came, and a note of
        the error how the run is resumed.
    """
    sinks = tuple(sinks)
    with open_runtime(experiment, sinks) as runtime:
        return runtime.run(out, sinks, opened)


def resume(
    run_dir: str | Path, sinks: Iterable[Sink] = (), experiment: Experiment | None = None
) -> RunResult:
    """Resume an unfinished run to the same model as if it had never stopped.

    Parameters
    ----------
    run_dir : path
        The run directory; on a network, as both this process and the SuperLink see it.
    sinks : iterable of callables
        As of `run`.
    experiment : Experiment, optional
        The run's, with another ``runtime``; by default as it was.

    Raises
    ------
    InputError
        If the directory is no run directory, has no checkpoint, or another process writes it; if
        the runtime is not available.
    RunError
        As of `run`.
    """
    experiment = experiment or RunRecord(run_dir).experiment()
    sinks = tuple(sinks)
    with open_runtime(experiment, sinks) as runtime:
        return runtime.resume(run_dir, sinks)


def load_model(run_dir: str | Path) -> Any:
    """The final global model of a run, as the LightningModule it was trained as.

    Raises
    ------
    InputError
        If the run left no model, or its class cannot be imported any more.
    """
    import torch

    from flsimulation.models import instantiate

    record = RunRecord(run_dir)
    weights, described = record.weights(), record.manifest["model"]
    with torch.random.fork_rng(devices=[]):
        module = instantiate(described["class"], described["arguments"])
    module.load_state_dict(weights)
    return module.eval()
