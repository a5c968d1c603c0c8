"""Where an experiment runs: in this process, on Ray, or on a network. One door to all three.

Nothing heavy is imported here: each runtime is, when it is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from flsimulation.events import Sink
from flsimulation.experiment import Experiment
from flsimulation.host.processes import uncollected
from flsimulation.rundir import RunResult
from flsimulation.rundir.reader import can_resume
from flsimulation.runtimes.resuming import resume_command

if TYPE_CHECKING:
    from flsimulation.client.workspace import Workspace
    from flsimulation.server.app import Start

Federate: TypeAlias = Callable[
    [Experiment, Iterable[Sink], "Workspace | None", "Start | None"], None
]
"""Runs a federation: its experiment, who takes its events, data and model, and where it goes on."""
Opened: TypeAlias = Callable[[Path], None]
"""Takes the run directory as soon as it exists."""


class Runtime(Protocol):
    """Where an experiment runs, ready for its runs."""

    @property
    def experiment(self) -> Experiment:
        """What it was opened for."""

    @property
    def place(self) -> str:
        """Where it is, for people."""

    @property
    def federate(self) -> Federate | None:
        """Runs a federation whose server is in this process; None where the server is elsewhere."""

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
            The run directory, as the run's server sees it; by default ``runs/<utc-time>-<name>``.
        sinks : iterable of callables
            Each takes every event of the run.
        opened : callable, optional
            Takes the run directory as soon as it exists.
        checkpoints : bool
            Whether sinks take the checkpoints also where they have to travel, for checks: there
            they come without the strategy.

        Raises
        ------
        InputError
            If the experiment cannot be run; no run directory is left then.
        RunError
            If the federation could not go on; a note says how the run is resumed.
        """

    def resume(self, run_dir: str | Path, sinks: Iterable[Sink] = ()) -> RunResult:
        """Resume the experiment's unfinished run, as of `run`."""


@contextlib.contextmanager
def open_runtime(experiment: Experiment, sinks: Iterable[Sink] = ()) -> Iterator[Runtime]:
    """Where an experiment's ``runtime`` says that it runs, inside the block.

    On Ray its actors have started by then; on a network its SuperLink answers.

    Parameters
    ----------
    experiment : Experiment
        Its ``runtime`` decides.
    sinks : iterable of callables
        Are notified if it takes long to open.

    Raises
    ------
    InputError
        If the runtime is not available.
    RunError
        If it does not start.
    """
    with _opener(experiment)(experiment, tuple(sinks)) as runtime:
        yield runtime


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
    """The experiment where a run in one process is compared with it: a network in place of that."""
    if experiment.runtime.kind != "inprocess":
        return experiment
    runtime = experiment.runtime.model_copy(update={"kind": "network"})
    return experiment.model_copy(update={"runtime": runtime})


def resume_hint(experiment: Experiment, run_dir: Path) -> str | None:
    """The command that resumes a run; None if it has completed no round, or is not seen from here."""
    if not can_resume(run_dir):
        return None
    is_network = experiment.runtime.kind == "network"
    superlink = experiment.runtime.superlink if is_network else None
    return resume_command(run_dir, superlink, experiment.data.clients)
