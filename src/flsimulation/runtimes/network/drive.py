"""A run on a network, driven from anywhere: submit it, follow its events, end with its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flsimulation.errors import InputError, RunError
from flsimulation.events import Event, RoundFinished, RunFinished, RunStarted, Sink
from flsimulation.experiment import Experiment, flatten
from flsimulation.internals.flower_words import FINISHED, PENDING, RUNNING, STARTING, STOPPED
from flsimulation.runtimes.network import lines
from flsimulation.runtimes.network.flower import Flower, flower
from flsimulation.runtimes.network.names import MODELS, OUT, RESUME
from flsimulation.runtimes.network.resuming import resume_command

_GOING = (PENDING, STARTING, RUNNING)
_AGAIN_SECONDS = 1.0  # before a stream that broke is asked for again


@dataclass
class _Log:
    """What the log has told so far, apart from events."""

    result: dict[str, Any] | None = None
    error: str | None = None
    input: bool = False
    run_dir: str | None = None
    """As the SuperLink sees it."""
    rounds: int = 0
    """Rounds that the run can be resumed after."""
    clients: int | None = None
    end: RunFinished | None = None
    read: int = 0
    """Lines that were for us."""

    @property
    def is_over(self) -> bool:
        """Whether the run's result, or what it failed of, is known."""
        return self.result is not None or self.error is not None

    def note(self, event: Event) -> None:
        """Remember what is needed if the log tells no more."""
        if isinstance(event, RunStarted):
            self.clients = event.experiment.data.clients
        elif isinstance(event, RoundFinished):
            self.rounds = event.round
        elif isinstance(event, RunFinished):
            self.rounds, self.end = max(self.rounds, event.rounds), event


def run_on_network(
    experiment: Experiment,
    out: str | Path | None = None,
    sinks: Iterable[Sink] = (),
    opened: Callable[[Path], None] | None = None,
    resumed: str | Path | None = None,
    models: dict[int, Any] | None = None,
) -> dict[str, Any]:
    """Run an experiment on the SuperLink that it names; gives the fields of a ``RunResult``.

    The run directory is written where the SuperLink runs, below its working directory.

    Parameters
    ----------
    experiment : Experiment
        Its ``runtime.superlink`` says where.
    out : path, optional
        The run directory, as the SuperLink sees it.
    sinks : iterable of callables
        Each takes every event of the run but the checkpoints.
    opened : callable, optional
        Is told the run directory as soon as it exists.
    resumed : path, optional
        Go on with the run in this directory, as the SuperLink sees it.
    models : dict, optional
        Takes the global model of every round, NumPy arrays by name. They travel in the run's log:
        for checks, not for large models.

    Raises
    ------
    InputError
        If no SuperLink answers, or it finds the experiment impossible.
    RunError
        If the run could not go on.
    """
    config = flatten(experiment)
    config |= {OUT: str(out)} if out is not None else {}
    config |= {RESUME: str(resumed)} if resumed is not None else {}
    config |= {MODELS: True} if models is not None else {}
    with flower(experiment.runtime.superlink) as command:
        command.check()
        run_id = command.submit(config)
        try:
            log = _follow(command, run_id, tuple(sinks), opened, models)
        except BaseException:  # Ctrl-C, or a sink that fails: nobody is left to watch it
            command.stop(run_id)
            raise
        return _result(command, run_id, log, resumed is not None)


def attach_to_run(
    command: Flower,
    run_id: str,
    sinks: Iterable[Sink] = (),
    opened: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Follow a run from its beginning; whoever follows it may go, and it stays in progress.

    Parameters
    ----------
    command : Flower
        Of the run's SuperLink.
    run_id : str
        Flower's id of the run.
    sinks, opened
        As of `run_on_network`, whose fields of a ``RunResult`` it returns and whose errors it raises.
    """
    return _result(command, run_id, _follow(command, run_id, tuple(sinks), opened, None))


def _result(command: Flower, run_id: str, log: _Log, was_resumed: bool = False) -> dict[str, Any]:
    """What the run came to; raises what it failed of, with the way to resume it."""
    if log.result is not None:
        return log.result
    if log.error is None:
        log.error = _cause(command, run_id, log.end)
    if log.input:
        raise InputError(log.error)
    if log.run_dir is not None and (log.rounds or was_resumed):
        again = resume_command(log.run_dir, command.superlink, log.clients)
        raise RunError(f"{log.error}; resume with `{again}`")
    raise RunError(log.error)


def _cause(command: Flower, run_id: str, end: RunFinished | None) -> str:
    """Why a run ended whose log says nothing of it."""
    if end is not None:
        return end.error or f"the run was {end.state}"
    state = command.state(run_id)
    if state == STOPPED:
        return "the run was stopped"
    if state.startswith(FINISHED):
        return "the run's process ended and did not say why; the SuperLink's log may"
    if command.answers():
        return "the SuperLink was started again, which ended the run"
    return "the SuperLink does not answer any more, which ended the run; start it again"


def _follow(
    command: Flower,
    run_id: str,
    sinks: tuple[Sink, ...],
    opened: Callable[[Path], None] | None,
    models: dict[int, Any] | None,
) -> _Log:
    log = _Log()
    for found in _told(command, run_id, log):
        if not isinstance(found, dict):
            log.note(found)
            for sink in sinks:
                sink(found)
        elif "model" in found and models is not None:
            models[int(found["model"])] = lines.model_of(found)
        elif "run-dir" in found:
            log.run_dir = str(found["run-dir"])
            if opened is not None:
                opened(Path(log.run_dir))
        elif "result" in found:
            log.result = found["result"]
        elif "error" in found:
            log.error, log.input = str(found["error"]), bool(found.get("input"))
    return log


def _told(command: Flower, run_id: str, log: _Log) -> Iterator[Event | dict[str, Any]]:
    """What the log tells us, up to the result or the error; Flower's stream ends seconds later.

    A stream that breaks before is asked for again, as long as the SuperLink knows the run. It then
    begins anew; what was read already is passed over.
    """
    over = False
    while True:
        again = log.read
        with command.follow(run_id) as stream:
            for line in stream:
                found = lines.read(line)
                if found is None:
                    continue
                if again:
                    again -= 1
                else:
                    log.read += 1
                    yield found
                if log.is_over:
                    break
        if log.is_over or over:
            return
        over = not command.state(run_id).startswith(_GOING)
        time.sleep(_AGAIN_SECONDS)
