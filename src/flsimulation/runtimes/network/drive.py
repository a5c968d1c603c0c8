"""Runs on a network: submit a run, follow its events, return its result."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flsimulation.errors import InputError, RunError
from flsimulation.events import Event, RoundFinished, RunFinished, RunStarted, Sink
from flsimulation.experiment import Experiment, flatten
from flsimulation.experiment.sources import sources_of
from flsimulation.internals.flower_words import FINISHED, PENDING, RUNNING, STARTING, STOPPED
from flsimulation.rundir import RunResult
from flsimulation.runtimes import Opened
from flsimulation.runtimes.network import lines
from flsimulation.runtimes.network.flower import Flower, flower
from flsimulation.runtimes.network.names import MODELS, OUT, RESUME
from flsimulation.runtimes.resuming import resume_command
from flsimulation.security.home import WARNING, is_insecure

_GOING = (PENDING, STARTING, RUNNING)
_AGAIN_SECONDS = 1.0  # before a broken stream is requested again


@dataclass
class _Log:
    """What the log has contained so far, apart from events."""

    result: dict[str, Any] | None = None
    error: str | None = None
    input: bool = False
    run_dir: str | None = None
    """Path on the SuperLink's machine."""
    rounds: int = 0
    """Completed rounds, after which the run can be resumed."""
    clients: int | None = None
    end: RunFinished | None = None
    read: int = 0
    """Number of the last line read that is for programs."""

    @property
    def is_over(self) -> bool:
        """Whether the run's result or its error is known."""
        return self.result is not None or self.error is not None

    def note(self, event: Event) -> None:
        """Keep what is needed if the log ends without a result or an error."""
        if isinstance(event, RunStarted):
            self.clients, self.rounds = event.experiment.data.clients, event.done
        elif isinstance(event, RoundFinished):
            self.rounds = event.round
        elif isinstance(event, RunFinished):
            self.rounds, self.end = max(self.rounds, event.rounds), event


@dataclass(frozen=True)
class NetworkRuntime:
    """Runs the server, which writes the run directory, on a SuperLink's machine; see `Runtime`."""

    experiment: Experiment
    command: Flower
    """Flower's command for the experiment's SuperLink."""
    federate: None = None

    @property
    def place(self) -> str:
        """``host:port`` of the SuperLink."""
        return self.command.superlink

    def run(
        self,
        out: str | Path | None = None,
        sinks: Iterable[Sink] = (),
        opened: Opened | None = None,
        *,
        checkpoints: bool = False,
    ) -> RunResult:
        """Run the experiment. Checkpoints are sent in the run's log: not for large models."""
        keys: dict[str, bool | str] = {OUT: str(out)} if out is not None else {}
        keys |= {MODELS: True} if checkpoints else {}
        return self._drive(keys, sinks, opened)

    def resume(self, run_dir: str | Path, sinks: Iterable[Sink] = ()) -> RunResult:
        """Resume the run in a directory, which is a path on the SuperLink's machine."""
        return self._drive({RESUME: str(run_dir)}, sinks, None)

    def _drive(
        self, keys: Mapping[str, bool | str], sinks: Iterable[Sink], opened: Opened | None
    ) -> RunResult:
        run_id = self.command.submit(
            {**flatten(self.experiment), **sources_of(self.experiment), **keys}
        )
        try:
            log = _follow(self.command, run_id, tuple(sinks), opened)
        except BaseException:  # Ctrl-C, or a sink that fails: the run is not followed any more
            self.command.stop(run_id)
            raise
        return _result(self.command, run_id, log, was_resumed=RESUME in keys)


@contextlib.contextmanager
def open_network(experiment: Experiment, _: tuple[Sink, ...] = ()) -> Iterator[NetworkRuntime]:
    """Open the experiment's SuperLink. Raises `InputError` if it does not answer."""
    if is_insecure():
        print(f"flsim: {WARNING}", file=sys.stderr)
    with flower(experiment.runtime.superlink) as command:
        command.check()
        yield NetworkRuntime(experiment, command)


def attach_to_run(
    command: Flower,
    run_id: str,
    sinks: Iterable[Sink] = (),
    opened: Opened | None = None,
) -> RunResult:
    """Follow a run from its beginning. If this is interrupted, the run continues.

    Parameters
    ----------
    command : Flower
        Flower's command for the run's SuperLink.
    run_id : str
        Flower's id of the run.
    sinks, opened
        As in `Runtime.run`; errors are the same, too.
    """
    return _result(command, run_id, _follow(command, run_id, tuple(sinks), opened))


def _result(command: Flower, run_id: str, log: _Log, was_resumed: bool = False) -> RunResult:
    """The run's result; raises its error, with a note on how to resume it."""
    if log.result is not None:
        return RunResult(**log.result)
    is_cut = log.error is None and log.end is None
    if log.error is None:
        log.error = _cause(command, run_id, log.end)
    if log.input:
        raise InputError(log.error)
    error = RunError(log.error)
    is_known = bool(log.rounds) or was_resumed
    if log.run_dir is not None and (is_known or is_cut):  # cut, the last lines may not have come
        again = resume_command(log.run_dir, command.superlink, log.clients)
        error.add_note(f"{'' if is_known else 'if a round was completed, '}resume with `{again}`")
    raise error


def _cause(command: Flower, run_id: str, end: RunFinished | None) -> str:
    """Why a run ended whose log does not contain the reason."""
    if end is not None and end.state != "interrupted":
        return end.error or f"the run was {end.state}"
    state = command.state(run_id)
    if state == STOPPED:
        return "the run was stopped"
    if end is not None:  # the line that says so came too late
        return f"the run was interrupted{f': {end.error}' if end.error else ''}"
    if state.startswith(FINISHED):
        return "the run's process ended without a reason; see the SuperLink's log"
    if command.answers():
        return "the SuperLink was restarted, which ended the run"
    return "the SuperLink does not answer any more, which ended the run; restart it"


def _follow(command: Flower, run_id: str, sinks: tuple[Sink, ...], opened: Opened | None) -> _Log:
    log = _Log()
    for found in _read_log(command, run_id, log):
        if not isinstance(found, dict):
            log.note(found)
            for sink in sinks:
                sink(found)
        elif "run-dir" in found:
            log.run_dir = str(found["run-dir"])
            if opened is not None:
                opened(Path(log.run_dir))
        elif "result" in found:
            log.result = found["result"]
        elif "error" in found:
            log.error, log.input = str(found["error"]), bool(found.get("input"))
    return log


def _read_log(command: Flower, run_id: str, log: _Log) -> Iterator[Event | dict[str, Any]]:
    """Events and other lines for programs in the log, up to the result or the error.

    Flower's stream would end seconds later. If the stream breaks, or has left out a line, it is
    requested again as long as the run is in progress. It then starts from the beginning; lines that
    were read are skipped.
    """
    over, requested_for = False, -1  # after this line another one was missing
    while True:
        number, missing = 0, False
        with command.follow(run_id) as stream:
            for line in stream:
                own, found = lines.read_numbered(line)
                if found is None:
                    continue
                number = own or number + 1
                missing = number > log.read + 1 and log.read != requested_for
                if missing:
                    requested_for = log.read
                    break
                if number > log.read:
                    log.read = number
                    yield found
                if log.is_over:
                    break
        if log.is_over or (over and not missing):
            return
        over = not command.state(run_id).startswith(_GOING)
        time.sleep(_AGAIN_SECONDS)
