"""A run on its server's side: the federation, the run directory and the report, in one process.

Who starts a run from outside, of whichever runtime, goes by `runtimes.open_runtime`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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
from flsimulation.runtimes import Federate, Opened
from flsimulation.server.app import Start
from flsimulation.server.rounds import is_reached


def record_run(
    experiment: Experiment,
    federate: Federate,
    out: str | Path | None = None,
    sinks: Iterable[Sink] = (),
    opened: Opened | None = None,
    *,
    clients: int | None = None,
) -> RunResult:
    """Run an experiment's federation and write its run directory.

    Parameters
    ----------
    experiment : Experiment
        What to run.
    federate : callable
        Runs the federation.
    out : path, optional
        The run directory; by default ``runs/<utc-time>-<name>``.
    sinks : iterable of callables
        Each takes every event of the run.
    opened : callable, optional
        Takes the run directory as soon as it exists.
    clients : int, optional
        The most that train in this process at a time, as of `Workspace.load`.

    Raises
    ------
    InputError
        If the experiment's data or model is not available; no run directory is left then.
    RunError
        If the federation could not go on; the run directory says how far it came.
    """
    space = Workspace.load(experiment, clients=clients)  # before anything is written
    _meanwhile(lambda: space.data.dataset.digest)
    if space.engine.name == "stacked":
        _meanwhile(load_plots)  # not beside processes that are forked
    path = create_run_directory(experiment.name, out)
    with claimed(path):
        if opened is not None:
            opened(path)
        directory = RunDirectory(path, experiment)
        with _reported(path):
            federate(experiment, [directory, *sinks], space, None)
    return RunRecord(path).result()


def record_resumed(
    run_dir: str | Path,
    experiment: Experiment,
    federate: Federate,
    sinks: Iterable[Sink] = (),
    *,
    clients: int | None = None,
) -> RunResult:
    """Resume an unfinished run to the same model as if it had never stopped.

    Parameters
    ----------
    run_dir : path
        Its run directory.
    experiment, federate, sinks, clients
        As of `record_run`.

    Raises
    ------
    InputError
        If the directory is no run directory, has no checkpoint, or another process writes it.
    RunError
        As of `record_run`.
    """
    record = RunRecord(run_dir)
    settle(record.path)
    with claimed(record.path):
        start = _start(record, experiment)
        space = Workspace.load(experiment, clients=clients)
        directory = RunDirectory(record.path, experiment, done=start.round)
        with _reported(record.path):
            federate(experiment, [directory, *sinks], space, start)
    return RunRecord(record.path).result()


def _start(record: RunRecord, experiment: Experiment) -> Start:
    saved = record.checkpoint()
    last = next((line for line in record.rounds if line["round"] == saved.round), {})
    reached = is_reached(experiment.evaluate.target_accuracy, last.get("central"))
    trained = record.trained(until=saved.round)
    return Start(saved.round, saved.arrays, saved.strategy, reached, trained)


def _meanwhile(work: Callable[[], object]) -> None:
    """Do in another thread what will be needed later; whoever needs it sees what goes wrong."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    threading.Thread(target=quietly, daemon=True).start()


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
