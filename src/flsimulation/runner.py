"""One call from an experiment to a finished run directory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from flsimulation.client.workspace import Workspace
from flsimulation.errors import InputError
from flsimulation.events import Sink
from flsimulation.experiment import Experiment
from flsimulation.host.processes import undisturbed
from flsimulation.report import load_plots, write_report
from flsimulation.rundir import RunRecord, RunResult
from flsimulation.rundir.manifest import settle
from flsimulation.rundir.storage import claimed, storing
from flsimulation.rundir.writer import RunDirectory, create_run_directory
from flsimulation.runtimes import Federate
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.runtimes.ray.grid import ray_federation
from flsimulation.server.app import Start
from flsimulation.server.rounds import is_reached


def run(
    experiment: Experiment,
    out: str | Path | None = None,
    sinks: Iterable[Sink] = (),
    opened: Callable[[Path], None] | None = None,
    federate: Federate | None = None,
) -> RunResult:
    """Run an experiment and leave a run directory with a report.

    Parameters
    ----------
    experiment : Experiment
        From `load_experiment`, or built in Python.
    out : path, optional
        The run directory; by default ``runs/<utc-time>-<name>``.
    sinks : iterable of callables
        Each takes every event of the run.
    opened : callable, optional
        Is told the run directory as soon as it exists.
    federate : callable, optional
        Runs the federation; by default on Ray if the experiment's ``runtime.kind`` says so, else
        all of it in this process.

    Raises
    ------
    InputError
        If the experiment's data, model or runtime cannot be had; no run directory is left then.
    RunError
        If the federation could not go on; the run directory says how far it came.
    """
    space = _workspace(experiment, federate)  # before anything is written
    _meanwhile(lambda: space.data.dataset.digest)
    if space.engine.name == "stacked":
        _meanwhile(load_plots)  # not beside processes that are forked
    with _carried(experiment, federate) as carry:
        path = create_run_directory(experiment.name, out)
        with claimed(path):
            if opened is not None:
                opened(path)
            directory = RunDirectory(path, experiment)
            with _reported(path):
                carry(experiment, [directory, *sinks], space, None)
    return RunRecord(path).result()


def _workspace(experiment: Experiment, federate: Federate | None) -> Workspace:
    """What the run works with here; clients that another one carries train elsewhere."""
    return Workspace.load(experiment, clients=None if federate is None else 0)


def _meanwhile(work: Callable[[], object]) -> None:
    """Do in another thread what will be needed later; whoever needs it sees what goes wrong."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    threading.Thread(target=quietly, daemon=True).start()


@contextlib.contextmanager
def _carried(experiment: Experiment, federate: Federate | None) -> Iterator[Federate]:
    """What runs the federation: as given, or as the experiment says."""
    if federate is None and experiment.runtime.kind == "ray":
        with ray_federation(experiment) as on_ray:
            yield on_ray
    else:
        yield federate or run_in_process


def resume(
    run_dir: str | Path,
    sinks: Iterable[Sink] = (),
    federate: Federate | None = None,
    experiment: Experiment | None = None,
) -> RunResult:
    """Go on with an unfinished run to the same model as if it had never stopped.

    Parameters
    ----------
    run_dir : path
        The run directory.
    sinks, federate
        As of `run`.
    experiment : Experiment, optional
        The run's, with another ``runtime``; by default as it was.

    Raises
    ------
    InputError
        If the directory is no run directory, has no checkpoint, or another process writes it.
    """
    record = RunRecord(run_dir)
    experiment = experiment or record.experiment()
    settle(record.path)
    with claimed(record.path):
        return _resume(record, experiment, sinks, federate)


def _resume(
    record: RunRecord, experiment: Experiment, sinks: Iterable[Sink], federate: Federate | None
) -> RunResult:
    saved = record.checkpoint()
    last = next((line for line in record.rounds if line["round"] == saved.round), {})
    reached = is_reached(experiment.evaluate.target_accuracy, last.get("central"))
    trained = record.trained(until=saved.round)
    start = Start(saved.round, saved.arrays, saved.strategy, reached, trained)
    space = _workspace(experiment, federate)
    with _carried(experiment, federate) as carry:
        directory = RunDirectory(record.path, experiment, done=saved.round)
        with _reported(record.path):
            carry(experiment, [directory, *sinks], space, start)
    return RunRecord(record.path).result()


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Write the report whichever way the run ends; the run's own error comes first."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(InputError, OSError), undisturbed():
            write_report(path)
        raise
    with undisturbed(), storing(path):
        write_report(path)


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
