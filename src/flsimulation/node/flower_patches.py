"""What is changed inside Flower's SuperNode and SuperLink, beside the waits of `waits`.

Flower has no option for any of this. Each function says why; docs/decisions/0015 has the reasons.
What it replaces is in `flsimulation.internals.flower_processes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

from flwr.app import MessageType

from flsimulation.internals import flower_processes
from flsimulation.internals.flower_processes import RunNotRunningException, Step
from flsimulation.node.health import keep_trouble
from flsimulation.runtimes.network.names import LEFT

HEARD_SECONDS = 8.0
"""A client that was not heard for so long is not there."""

_HEARTBEAT = 7.5  # what Flower's sender makes 1.75 to 2.25 seconds of
_LOOK_SECONDS = 2.0  # between two looks whether the run still wants an answer, at least
_LOOK_SHARE = 0.1  # of the time that the answer has taken already
_LOOK_LIMIT = 10.0  # between two looks, at most
_QUERY_SECONDS = 60.0  # that the answer to a question may take, on a machine that is busy
_NO_OBJECT = "0" * 64  # asked for to learn whether the SuperLink still serves the run


class RunWatch:
    """The message that a SuperNode works on, and whether its answer is still wanted.

    Parameters
    ----------
    clock : callable
        Seconds, as ``time.monotonic``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pull: Callable[[int, str], bytes] | None = None
        self._run = 0
        self._began = self._next = self._latest = float("inf")

    def begin(self, run: int, message_type: str, pull: Callable[[int, str], bytes]) -> None:
        """A message of a run has come; ``pull`` asks the SuperLink for one of the run's objects."""
        self._run, self._pull, self._began = run, pull, self._clock()
        self._next = self._began + _LOOK_SECONDS
        is_query = message_type == MessageType.QUERY
        self._latest = self._began + _QUERY_SECONDS if is_query else float("inf")

    def look(self) -> None:
        """Leave if the run is over, or if a question is not answered; asks every few seconds."""
        now = self._clock()
        if now < self._next:
            return
        took = now - self._began
        self._next = now + min(_LOOK_LIMIT, max(_LOOK_SECONDS, _LOOK_SHARE * took))
        if now > self._latest:
            leave(f"no process answered within {_QUERY_SECONDS:g} s")
        if self._is_over():
            leave("the run is over")

    def _is_over(self) -> bool:
        if self._pull is None:
            return False
        try:
            self._pull(self._run, _NO_OBJECT)
        except RunNotRunningException:
            return True
        except Exception:  # there is no such object, which is what a run that is not over answers
            return False
        return False


def leave(why: str) -> NoReturn:
    """End this SuperNode with everything that it holds; the warm server starts another at once."""
    print(f"flsim: {why}: what was in progress is dropped, the client connects again", flush=True)
    raise SystemExit(LEFT)


def leave_with_run(watch: RunWatch) -> None:
    """Let the SuperNode forked from this process drop the work of a run that is over.

    Flower stores a message, then pulls its parts. ``RunNotRunningException`` is a ``BaseException``
    and passes the clean-up that is there for other errors, so a message of a run that was stopped
    meanwhile stays in the node's state. Its answer is then sent in place of the next run's; by Flower
    1.42 so is every one after it.
    """

    def wrap(pull_and_store: Step) -> Step:
        def pull_or_leave(**given: Any) -> int | None:
            if flower_processes.has_answers(given["state"]):  # those of before were all sent
                leave("an answer was left over")
            came: list[Any] = []

            def receive() -> Any:
                came.append(given["receive"]())
                return came[-1]

            run: int | None = pull_and_store(**{**given, "receive": receive})
            if came and came[-1] is not None:
                if run is None:
                    leave("a message could not be received whole")
                watch.begin(run, came[-1][0].metadata.message_type, given["pull_object"])
            return run

        return pull_or_leave

    flower_processes.wrap_pull_and_store(wrap)


def leave_with_lost_answer() -> None:
    """Let the SuperNode forked from this process leave when an answer could not be sent whole.

    Flower logs that and drops the answer. The SuperLink of Flower 1.42 tells the run three minutes
    later; that of 1.43 never does, and a run without a deadline would wait for a client that is
    there. A client that was started again has lost its message, which the run's server knows.
    """

    def wrap(push: Step) -> Step:
        def push_or_leave(**given: Any) -> None:
            failed: list[Exception] = []
            noting = {name: _noting(given[name], failed) for name in ("send", "push_object")}
            push(**{**given, **noting})
            if failed:
                keep_trouble(f"its answer could not be sent: {_one_line(failed[0])}")
                leave("an answer could not be sent")

        return push_or_leave

    flower_processes.wrap_push(wrap)


def _noting(call: Step, failed: list[Exception]) -> Step:
    """The call, whose errors are kept; the end of a run is none."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            failed.append(error)
            raise

    return noted


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def send_heartbeats_often() -> None:
    """Let this process and its forks send a heartbeat every two seconds instead of every 20.

    A SuperNode's heartbeat says that the client is there. The reply to a ServerApp's or a
    ClientApp's says whether its work is still wanted: a run that was stopped ends that much sooner.
    The interval that a SuperNode announces stays: Flower itself drops a message whose node was not
    heard for twice as long, and its answer can then not be delivered any more.
    """
    flower_processes.set_heartbeat_interval(_HEARTBEAT)


def list_nodes_heard_lately() -> None:
    """Let the SuperLink in this process list only the nodes that it heard in the last seconds.

    Flower lists a node until twice the interval that it announced has passed, which is a minute.
    """
    flower_processes.list_nodes_heard(HEARD_SECONDS)
