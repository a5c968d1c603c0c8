"""The runs of a SuperLink: list them, their progress, and stop one."""

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
from flsimulation.rundir import JsonObject
from flsimulation.rundir.manifest import read_manifest
from flsimulation.rundir.reader import is_reported
from flsimulation.runtimes.network import lines
from flsimulation.runtimes.network.flower import Flower, FlowerRun

_END_SECONDS = 60.0  # that a server has to write its run's end; it learns of it within 30
_REPORT_SECONDS = 60.0  # that it then has for the report
_LOOK_SECONDS = 0.2
_STATES = {
    COMPLETED: "completed",
    FAILED: "failed",
    STOPPED: "interrupted",
    RUNNING: "running",
}
"""Flower's status of a run -> its state here."""


@dataclass
class KnownRun:
    """A run of a SuperLink, with the content of its log."""

    flower: FlowerRun
    run_dir: str | None = None
    """Path on the SuperLink's machine."""
    experiment: Experiment | None = None
    rounds: int = 0
    """Rounds completed, according to the log."""
    end: str | None = None
    """The state in which the run's server ended it."""

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
        """The experiment's name; None before the run has reported it."""
        return self.experiment.name if self.experiment is not None else None

    @property
    def of_rounds(self) -> int | None:
        """Number of rounds of the experiment."""
        return self.experiment.strategy.rounds if self.experiment is not None else None

    @property
    def progress(self) -> str:
        """``3 of 10 rounds``, or ``no round`` before the experiment is known."""
        return f"{self.rounds} of {self.of_rounds} rounds" if self.of_rounds else "no round"

    def read_end(self, here: Path) -> None:
        """Read a stopped run's end from its run directory; Flower's log does not contain it.

        Parameters
        ----------
        here : Path
            The run directory on this machine.
        """
        found = _manifest(here)
        if found["state"] != "running" and found.get("name") == self.name:
            self.rounds, self.end = int(found["rounds"]), str(found["state"])

    def record(self) -> dict[str, Any]:
        """The run as a JSON object."""
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
    """Runs of a SuperLink with the content of their logs, in the given order."""
    found = [KnownRun(run) for run in runs]
    begun = [run.id for run in found if run.flower.has_begun]
    logs = command.logs(begun) if begun else {}
    for run in found:
        _learn(run, logs.get(run.id, []))
    return found


def _learn(run: KnownRun, log: Iterable[str]) -> None:
    """Update a run from the lines of its log."""
    for line in log:
        found = lines.read(line)
        if isinstance(found, RunStarted):
            run.experiment, run.rounds = found.experiment, found.done
        elif isinstance(found, RoundFinished):
            run.rounds = found.round
        elif isinstance(found, RunFinished):
            run.rounds, run.end = found.rounds, found.state
        elif isinstance(found, dict) and "run-dir" in found:
            run.run_dir = str(found["run-dir"])


def in_progress(runs: Iterable[KnownRun]) -> KnownRun | None:
    """The run in progress; a second one has no run directory, and is about to be refused."""
    going = [run for run in runs if not run.flower.is_over]
    going = [run for run in going if run.run_dir is not None] or going
    return going[-1] if going else None  # the oldest


def find_run(command: Flower, wanted: str | None) -> KnownRun:
    """The run in progress, or the one with this id, prefix of an id, or run directory.

    Raises
    ------
    InputError
        If no run matches ``wanted``, or several do.
    RunError
        If ``wanted`` is None and no run is in progress.
    """
    runs = command.runs()
    if wanted is None:
        going = in_progress(known_runs(command, [run for run in runs if not run.is_over]))
        if going is None:
            raise RunError(
                "no run is in progress; flsim runs lists earlier runs, flsim run starts one"
            )
        return going
    named = [run for run in runs if run.id.startswith(wanted)]
    found = known_runs(command, named or runs)
    if not named:
        name = PurePosixPath(wanted).name
        found = [run for run in found if run.run_dir and PurePosixPath(run.run_dir).name == name]
    if not found:
        raise InputError(f"RUN {wanted}: the SuperLink has no such run; flsim runs lists its runs")
    if len(found) > 1 and named:
        raise InputError(
            f"RUN {wanted}: the ids of {len(found)} runs begin with it; flsim runs lists them"
        )
    return found[0]  # the newest, if several wrote to one directory


def stop_in_order(command: Flower, run: KnownRun, here: Path | None) -> KnownRun:
    """Stop a run and wait until its server has written the end; returns the ended run.

    Flower revokes the server's token at once, so the log does not contain the end: it is read from
    the run directory.

    Parameters
    ----------
    command : Flower
        Flower's command for the run's SuperLink.
    run : KnownRun
        A run that is not over.
    here : Path, optional
        Its run directory on this machine; without it, the end is as far as the log contains it.

    Raises
    ------
    RunError
        If the run could not be stopped, or its end was not written in time.
    """
    status = STOPPED if command.stop(run.id) else command.state(run.id)
    if not status.startswith(FINISHED):
        raise RunError(f"run {run.id} could not be stopped; see the SuperLink's log")
    ended = replace(run, flower=replace(run.flower, status=status))
    if here is None:
        _learn(ended, command.logs([run.id])[run.id])
        return ended
    if not _wait(lambda: _manifest(here)["state"] != "running", _END_SECONDS):
        raise RunError(
            f"run {run.id} is stopped, but its server did not write the end into {here} within "
            f"{_END_SECONDS:g} s; see the SuperLink's log"
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


def _manifest(here: Path) -> JsonObject:
    """The manifest as stored: the SuperLink may be on another machine, whose locks do not show here."""
    with contextlib.suppress(InputError):
        return {"state": "running", **read_manifest(here)}
    return {"state": "running"}
