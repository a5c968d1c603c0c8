"""The runtimes of an experiment: in this process, on Ray, or on a network; and how to open one.

The runtimes' modules are slow to import, so each is imported when it is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from flsimulation.events import Sink
from flsimulation.experiment import Experiment
from flsimulation.experiment.importing import refuse_run_of_import
from flsimulation.host.processes import imports_kept
from flsimulation.internals.deferred import uncollected
from flsimulation.rundir import RunResult
from flsimulation.rundir.reader import can_resume
from flsimulation.runtimes.resuming import resume_command

if TYPE_CHECKING:
    from flsimulation.client.workspace import Workspace
    from flsimulation.server.app import Start

Federate: TypeAlias = Callable[
    [Experiment, Iterable[Sink], "Workspace | None", "Start | None"], None
]
"""Runs a federation: takes the experiment, sinks of its events, data with model, and the start."""
Opened: TypeAlias = Callable[[Path], None]
"""Called with the run directory as soon as it exists."""


class Runtime(Protocol):
    """An opened runtime, ready to run an experiment."""

    @property
    def experiment(self) -> Experiment:
        """The experiment that it was opened for."""

    @property
    def place(self) -> str:
        """A description of the place where it runs, for messages."""

    @property
    def federate(self) -> Federate | None:
        """Runs a federation with the server in this process; None if the server is elsewhere."""

    def run(
        self,
        out: str | Path | None = None,
        sinks: Iterable[Sink] = (),
        opened: Opened | None = None,
        *,
        checkpoints: bool = False,
    ) -> RunResult:
        """Run the experiment and leave a run directory with a report.

        Parameters
        ----------
        out : path, optional
            The run directory, a path that is valid for the server; by default ``runs/<utc-time>-<name>``.
        sinks : iterable of callables
            Each is called with every event of the run.
        opened : callable, optional
            Called with the run directory as soon as it exists.
        checkpoints : bool
            Whether sinks receive checkpoints also from a server in another process, as for `verify`;
            these checkpoints are without the strategy.

        Raises
        ------
        InputError
            If the experiment cannot be run; no run directory is left in that case.
        RunError
            If the federation could not continue; a note says how to resume the run.
        """

    def resume(self, run_dir: str | Path, sinks: Iterable[Sink] = ()) -> RunResult:
        """Resume the experiment's unfinished run; returns and raises as `run`."""


@contextlib.contextmanager
def open_runtime(experiment: Experiment, sinks: Iterable[Sink] = ()) -> Iterator[Runtime]:
    """Open the runtime that an experiment requests, for the block.

    On Ray, its actors have started inside the block; on a network, its SuperLink answers.

    Parameters
    ----------
    experiment : Experiment
        Its ``runtime`` selects the runtime.
    sinks : iterable of callables
        Notified if opening takes long.

    Raises
    ------
    InputError
        If the runtime is not available.
    RunError
        If it does not start.
    RunOfImport
        In a script that is imported for another run.
    """
    refuse_run_of_import()
    with (
        _data_read_ahead(experiment),
        _opener(experiment)(experiment, tuple(sinks)) as runtime,
        imports_kept(),
    ):
        yield runtime


def _data_read_ahead(experiment: Experiment) -> contextlib.AbstractContextManager[None]:
    if experiment.runtime.kind == "network":  # the data is read elsewhere
        return contextlib.nullcontext()
    with uncollected():
        from flsimulation.data.sources import read_ahead
    return read_ahead(experiment.data, experiment.seed)


def _opener(
    experiment: Experiment,
) -> Callable[[Experiment, tuple[Sink, ...]], contextlib.AbstractContextManager[Runtime]]:
    with uncollected():  # Lightning alone takes seconds to import
        if experiment.runtime.kind == "network":
            from flsimulation.runtimes.network.drive import open_network

            return open_network
        if experiment.runtime.kind == "ray":
            from flsimulation.runtimes.local import open_ray

            return open_ray
        from flsimulation.runtimes.local import open_process

        return open_process


def apart_from_here(experiment: Experiment) -> Experiment:
    """The experiment on the runtime to compare with one process: its own, else a network."""
    if experiment.runtime.kind != "inprocess":
        return experiment
    runtime = experiment.runtime.model_copy(update={"kind": "network"})
    return experiment.model_copy(update={"runtime": runtime})


def resume_hint(experiment: Experiment, run_dir: Path) -> str | None:
    """The command that resumes a run; None if it completed no round or is not accessible here."""
    if not can_resume(run_dir):
        return None
    is_network = experiment.runtime.kind == "network"
    superlink = experiment.runtime.superlink if is_network else None
    return resume_command(run_dir, superlink, experiment.data.clients)
