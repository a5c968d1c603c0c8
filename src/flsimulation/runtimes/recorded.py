"""A run on the server's side: the federation, the run directory and the report, in one process.

Callers that start a run use `runtimes.open_runtime` instead, for any runtime.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from flsimulation.client.workspace import Workspace
from flsimulation.data.federated import FederatedData
from flsimulation.errors import InputError
from flsimulation.events import Event, RoundFinished, Sink
from flsimulation.experiment import Experiment
from flsimulation.host.processes import undisturbed
from flsimulation.privacy.ledger import ledger_of
from flsimulation.report import load_plots, write_report
from flsimulation.rundir import RunRecord, RunResult
from flsimulation.rundir.manifest import settle
from flsimulation.rundir.storage import claimed, storing
from flsimulation.rundir.writer import RunDirectory, create_run_directory
from flsimulation.runtimes import Federate, Opened
from flsimulation.server.app import Start
from flsimulation.server.rounds import is_reached
from flsimulation.training import Before


def record_run(
    experiment: Experiment,
    federate: Federate,
    out: str | Path | None = None,
    sinks: Iterable[Sink] = (),
    opened: Opened | None = None,
    *,
    clients: int | None = None,
    measures: bool = False,
    data: FederatedData | None = None,
) -> RunResult:
    """Run an experiment's federation and write its run directory.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    federate : callable
        Runs the federation.
    out : path, optional
        The run directory; by default ``runs/<utc-time>-<name>``.
    sinks : iterable of callables
        Each is called with every event of the run.
    opened : callable, optional
        Called with the run directory as soon as it exists.
    clients : int, optional
        Most clients that train in this process at a time, as in `Workspace.load`.
    measures : bool
        Whether steps of the engines may be measured, as in `Workspace.load`.
    data : FederatedData, optional
        The data, if it was loaded before.

    Raises
    ------
    InputError
        If the experiment's data or model is not available; no run directory is left in that case.
    RunError
        If the federation could not continue; the run directory holds the completed rounds.
    """
    sinks = tuple(sinks)
    space = Workspace.load(  # before anything is written
        experiment, clients=clients, sinks=sinks, measures=measures, data=data
    )
    ledger_of(experiment)  # what it refuses, it does before anything is written
    _meanwhile(lambda: space.data.dataset.digest)
    if space.engine.name == "stacked":  # not while other processes are forked
        sinks = (*sinks, _plots_loaded)
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
    measures: bool = False,
    data: FederatedData | None = None,
) -> RunResult:
    """Resume an unfinished run; the final model is the same as without the interruption.

    Parameters
    ----------
    run_dir : path
        Its run directory.
    experiment, federate, sinks, clients, measures, data
        As in `record_run`.

    Raises
    ------
    InputError
        If the directory is not a run directory, has no checkpoint, or another process is writing it.
    RunError
        As in `record_run`.
    """
    record = RunRecord(run_dir)
    settle(record.path)
    with claimed(record.path):
        start = _start(record, experiment)
        sinks, before = tuple(sinks), _before(record) if measures else None
        space = Workspace.load(
            experiment, clients=clients, sinks=sinks, measures=measures, before=before, data=data
        )
        directory = RunDirectory(record.path, experiment, start.round, start.resumes)
        with _reported(record.path):
            federate(experiment, [directory, *sinks], space, start)
    return RunRecord(record.path).result()


def _start(record: RunRecord, experiment: Experiment) -> Start:
    saved = record.checkpoint()
    last = next((line for line in record.rounds if line["round"] == saved.round), {})
    reached = is_reached(experiment.evaluate.target_accuracy, last.get("central"))
    trained = record.trained(until=saved.round)
    before = record.manifest.get("resumes", 1 if record.manifest.get("resumed-after") else 0)
    return Start(saved.round, saved.arrays, saved.strategy, reached, trained, before + 1)


def _before(record: RunRecord) -> Before:
    """The engine that the run has: another one's roundings would differ."""
    return Before(
        record.manifest.get("engine"),
        record.manifest.get("not-stacked"),
        record.manifest.get("step-seconds") or {},
    )


def _plots_loaded(event: Event) -> None:
    """Import what the report draws with beside the second round: the first one is waited for."""
    if isinstance(event, RoundFinished) and event.round == 1:
        _meanwhile(load_plots)


def _meanwhile(work: Callable[[], object]) -> None:
    """Run ``work`` in another thread. Errors are ignored: its later, regular call raises them.

    The end of the program waits for it: a thread that it would end inside PyTorch aborts the program.
    """

    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    threading.Thread(target=quietly).start()


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Write the report however the run ends; the run's own error takes precedence."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(InputError, OSError), undisturbed():
            write_report(path)
        raise
    with undisturbed(), storing(path):
        write_report(path)
