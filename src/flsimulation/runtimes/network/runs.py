"""The runs of a SuperLink: which there are, how far each is, and how to end one in order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from flsimulation.errors import InputError, RunError
from flsimulation.events import RoundFinished, RunFinished, RunStarted
from flsimulation.experiment import Experiment
from flsimulation.internals.flower_words import COMPLETED, FAILED, FINISHED, RUNNING, STOPPED
from flsimulation.rundir import Record
from flsimulation.rundir.manifest import read_manifest
from flsimulation.rundir.reader import is_reported
from flsimulation.runtimes.network import lines
from flsimulation.runtimes.network.flower import Flower, FlowerRun

_END_SECONDS = 60.0  # that a server has to write its run's end; a heartbeat tells it within 30
_REPORT_SECONDS = 15.0  # that it then has for the report
_LOOK_SECONDS = 0.2
_STATES = {
    COMPLETED: "completed",
    FAILED: "failed",
    STOPPED: "interrupted",
    RUNNING: "running",
}
"""Flower's words for a run, and ours."""


@dataclass
class KnownRun:
    """A run of a SuperLink, with what its log tells."""

    flower: FlowerRun
    run_dir: str | None = None
    """As the SuperLink sees it."""
    experiment: Experiment | None = None
    rounds: int = 0
    """Rounds completed, as far as the log tells."""
    end: str | None = None
    """The state that the run's server ended it with."""

    @property
    def id(self) -> str:
        """Flower's id of the run."""
        return self.flower.id

    @property
    def state(self) -> str:
        """``starting``, ``running``, ``completed``, ``failed`` or ``interrupted``."""
        if not self.flower.is_over:
            return _STATES.get(self.flower.status, "starting")
        return self.end or _STATES.get(self.flower.status, "failed")

    @property
    def name(self) -> str | None:
        """The experiment's name; None before the run has said it."""
        return self.experiment.name if self.experiment is not None else None

    @property
    def of_rounds(self) -> int | None:
        """Rounds that the experiment asks for."""
        return self.experiment.strategy.rounds if self.experiment is not None else None

    @property
    def progress(self) -> str:
        """``3 of 10 rounds``, or as much of it as is known."""
        return f"{self.rounds} of {self.of_rounds} rounds" if self.of_rounds else "no round"

    def read_end(self, here: Path) -> None:
        """Take a stopped run's end from its run directory: Flower's log stops before it.

        Parameters
        ----------
        here : Path
            The run directory as this process sees it.
        """
        found = _manifest(here)
        if found["state"] != "running" and found.get("name") == self.name:
            self.rounds, self.end = int(found["rounds"]), str(found["state"])

    def record(self) -> dict[str, Any]:
        """The run, ready for JSON."""
        return {
            "run_id": self.id,
            "name": self.name,
            "state": self.state,
            "rounds": self.rounds,
            "of_rounds": self.of_rounds,
            "started": self.flower.submitted,
            "run_dir": self.run_dir,
        }


def known_runs(command: Flower, runs: Iterable[FlowerRun]) -> list[KnownRun]:
    """Runs of a SuperLink with what their logs tell, in the order that they come in."""
    found = [KnownRun(run) for run in runs]
    begun = [run.id for run in found if run.flower.has_begun]
    logs = command.logs(begun) if begun else {}
    for run in found:
        _learn(run, logs.get(run.id, []))
    return found


def _learn(run: KnownRun, log: Iterable[str]) -> None:
    """Take from a run's log what is to be known of the run."""
    for line in log:
        told = lines.read(line)
        if isinstance(told, RunStarted):
            run.experiment, run.rounds = told.experiment, told.done
        elif isinstance(told, RoundFinished):
            run.rounds = told.round
        elif isinstance(told, RunFinished):
            run.rounds, run.end = told.rounds, told.state
        elif isinstance(told, dict) and "run-dir" in told:
            run.run_dir = str(told["run-dir"])


def in_progress(runs: Iterable[KnownRun]) -> KnownRun | None:
    """The run that is in progress; one beside it has no directory, and is about to be refused."""
    going = [run for run in runs if not run.flower.is_over]
    going = [run for run in going if run.run_dir is not None] or going
    return going[-1] if going else None  # the oldest


def find_run(command: Flower, wanted: str | None) -> KnownRun:
    """The run in progress, or the one with this id, beginning of an id, or run directory.

    Raises
    ------
    InputError
        If no run has that name, or several have.
    RunError
        If none is named and none is in progress.
    """
    runs = command.runs()
    if wanted is None:
        going = in_progress(known_runs(command, [run for run in runs if not run.is_over]))
        if going is None:
            raise RunError(
                "no run is in progress; flsim runs lists those that were, flsim run starts one"
            )
        return going
    named = [run for run in runs if run.id.startswith(wanted)]
    found = known_runs(command, named or runs)
    if not named:
        name = PurePosixPath(wanted).name
        found = [run for run in found if run.run_dir and PurePosixPath(run.run_dir).name == name]
    if not found:
        raise InputError(
            f"RUN {wanted}: the SuperLink knows no such run; flsim runs lists its runs"
        )
    if len(found) > 1 and named:
        raise InputError(f"RUN {wanted}: {len(found)} runs begin so; flsim runs lists them")
    return found[0]  # of those that wrote to one directory, the newest


def stop_in_order(command: Flower, run: KnownRun, here: Path | None) -> KnownRun:
    """Stop a run and wait until its server has written the end; gives the run as it ended.

    Flower takes the server's token away at once, so the log does not hold the end: it is read from
    the run directory.

    Parameters
    ----------
    command : Flower
        Of the run's SuperLink.
    run : KnownRun
        A run that is not over.
    here : Path, optional
        Its run directory as this process sees it; without it the log's last words count.

    Raises
    ------
    RunError
        If the run could not be stopped, or its end was not written in time.
    """
    status = STOPPED if command.stop(run.id) else command.state(run.id)
    if not status.startswith(FINISHED):
        raise RunError(f"run {run.id} could not be stopped; the SuperLink's log says why")
    ended = replace(run, flower=replace(run.flower, status=status))
    if here is None:
        _learn(ended, command.logs([run.id])[run.id])
        return ended
    if not _wait(lambda: _manifest(here)["state"] != "running", _END_SECONDS):
        raise RunError(
            f"run {run.id} is stopped, but its server did not write the end into {here} within "
            f"{_END_SECONDS:g} s; the SuperLink's log says what it does"
        )
    _wait(lambda: is_reported(here), _REPORT_SECONDS)
    ended.read_end(here)
    return ended


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; False if it does not hold in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _manifest(here: Path) -> Record:
    """The manifest as the file has it: the SuperLink may be on a machine whose locks are not seen."""
    with contextlib.suppress(InputError):
        return {"state": "running", **read_manifest(here)}
    return {"state": "running"}
