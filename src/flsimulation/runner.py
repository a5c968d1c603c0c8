"""Run or resume an experiment on any runtime, and load the model of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flsimulation.errors import InputError
from flsimulation.events import Sink
from flsimulation.experiment import Experiment
from flsimulation.rundir import RunRecord, RunResult, look
from flsimulation.runtimes import open_runtime


def run(
    experiment: Experiment,
    out: str | Path | None = None,
    sinks: Iterable[Sink] = (),
    opened: Callable[[Path], None] | None = None,
) -> RunResult:
    """Run an experiment on its ``runtime``, and leave a run directory with a report.

    On a network, the run directory is on the SuperLink's machine, below its working directory;
    sinks are called with every event but the checkpoints.

    Parameters
    ----------
    experiment : Experiment
        From `load_experiment`, or created in Python.
    out : path, optional
        The run directory; by default ``runs/<utc-time>-<name>``.
    sinks : iterable of callables
        Each is called with every event of the run.
    opened : callable, optional
        Called with the run directory as soon as it exists.

    Raises
    ------
    InputError
        If the experiment's data, model or runtime is not available; no run directory is left in that case.
    RunError
        If the federation could not continue; the run directory then holds the completed rounds, and
        a note of the error says how to resume the run.
    """
    sinks = tuple(sinks)
    with open_runtime(experiment, sinks) as runtime:
        return runtime.run(out, sinks, opened)


def resume(
    run_dir: str | Path, sinks: Iterable[Sink] = (), experiment: Experiment | None = None
) -> RunResult:
    """Resume an unfinished run; the final model is the same as without the interruption.

    Parameters
    ----------
    run_dir : path
        The run directory; on a network, a path that is valid for this process and the SuperLink.
    sinks : iterable of callables
        As of `run`.
    experiment : Experiment, optional
        The run's own, with another ``runtime``; by default unchanged.

    Raises
    ------
    InputError
        If the directory is not a run directory, has no checkpoint, or another process is writing
        it; if the runtime is not available.
    RunError
        As of `run`.
    """
    experiment = experiment or RunRecord(run_dir).experiment()
    sinks = tuple(sinks)
    with open_runtime(experiment, sinks) as runtime:
        return runtime.resume(run_dir, sinks)


def load_model(run_dir: str | Path) -> Any:
    """The final global model of a run, as the LightningModule that was trained.

    Raises
    ------
    InputError
        If the run left no model, or its class cannot be imported any more.
    """
    import torch

    from flsimulation.models import instantiate

    record = RunRecord(run_dir)
    weights, described = record.weights(), look(record.manifest, "model")
    if described is None:
        raise InputError(f"{run_dir}: its manifest does not say which model it trained")
    with torch.random.fork_rng(devices=[]):
        module = instantiate(described["class"], described["arguments"])
    module.load_state_dict(weights)
    return module.eval()
