"""Changes inside Flower's SuperNode and SuperLink, besides the waits of `waits`.

Flower has no options for them. Each function says why; docs/decisions/0015 has the reasons. Flower's
names that are replaced are in `flsimulation.internals.flower_processes`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from flwr.app import MessageType

from flsimulation.internals import flower_processes
from flsimulation.internals.flower_processes import RunNotRunningException, Wrapped
from flsimulation.node.health import keep_trouble
from flsimulation.runtimes.network.names import LEFT

HEARD_SECONDS = 9.0
"""A client without a heartbeat for this long counts as disconnected. One that gets no answer is not missed:
Flower gives it up after 5 s, and sends the next one within another."""
_DEAD_SECONDS = HEARD_SECONDS + 2  # until it may return: the run's server has missed it before

_HEARTBEAT = 7.5  # from which Flower's sender calculates 1.75 to 2.25 seconds
_LOOK_SECONDS = 2.0  # at least, between two checks whether the run still needs the reply
_LOOK_SHARE = 0.1  # of the time that the reply has taken so far
_LOOK_LIMIT = 10.0  # at most, between two checks
_QUERY_SECONDS = 60.0  # that the reply to a query may take, on a busy machine
_UPLOAD_SECONDS = 0.25  # longer than Flower's pause between two uploads of a log
_NO_OBJECT = "0" * 64  # requested to learn whether the SuperLink still serves the run


class RunWatch:
    """Whether the reply to the message that a SuperNode is processing is still needed.

    Parameters
    ----------
    clock : callable
        Seconds, as ``time.monotonic``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pull: Callable[[int, str], bytes] | None = None
        self._works: Callable[[], bool] = lambda: True
        self._worked = True
        self._run = 0
        self._began = self._next = self._latest = float("inf")

    def begin(
        self,
        run: int,
        message_type: str,
        pull: Callable[[int, str], bytes],
        works: Callable[[], bool],
    ) -> None:
        """Watch a message of a run.

        Parameters
        ----------
        run : int
            The run's id.
        message_type : str
            The message's type.
        pull : callable
            Requests one of the run's objects from the SuperLink.
        works : callable
            Whether a process still works on the message.
        """
        self._run, self._pull, self._began = run, pull, self._clock()
        self._works, self._worked = works, True
        self._next = self._began + _LOOK_SECONDS
        is_query = message_type == MessageType.QUERY
        self._latest = self._began + _QUERY_SECONDS if is_query else float("inf")

    def look(self) -> None:
        """Leave if the run is over, or if there will be no reply; checks every few seconds."""
        now = self._clock()
        if now < self._next:
            return
        took = now - self._began
        self._next = now + min(_LOOK_LIMIT, max(_LOOK_SECONDS, _LOOK_SHARE * took))
        if now > self._latest:
            leave(f"no process replied within {_QUERY_SECONDS:g} s")
        if self._is_over():
            leave("the run is over")
        worked, self._worked = self._worked, self._works()
        if not worked and not self._worked:  # its reply, sent before it ended, would have been seen
            keep_trouble("the process of its message ended without a reply")
            leave("the process of a message ended without a reply")

    def _is_over(self) -> bool:
        if self._pull is None:
            return False
        try:
            self._pull(self._run, _NO_OBJECT)
        except RunNotRunningException:
            return True
        except Exception:  # no such object: the answer for a run that is not over
            return False
        return False


class LogWatch:
    """Whether the lines that a run's process has written have reached the SuperLink.

    Flower waits a second for that before it reports the run's end, after which lines are refused. On a
    busy machine a second is not always enough, and the run's result is in its last line.
    """

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] | None = None
        self._is_sending = False

    def follow(self) -> None:
        """Watch the log of the runs whose processes are forked from this one."""
        flower_processes.wrap_uploads(self._wrap)

    def wait(self, seconds: float) -> None:
        """Wait until all lines have been sent, or ``seconds`` have passed."""
        until, looks = time.monotonic() + seconds, 0
        while looks < 2 and time.monotonic() < until:  # between two, lines that were taken are sent
            looks = looks + 1 if self._is_sent() else 0
            time.sleep(_UPLOAD_SECONDS)

    def _is_sent(self) -> bool:
        return self._lines is None or (self._lines.empty() and not self._is_sending)

    def _wrap(self, lines: queue.Queue[str | None], push: Wrapped) -> Wrapped:
        self._lines = lines

        def pushed(request: Any) -> Any:
            self._is_sending = True  # until it succeeds: lines that were not sent are sent again
            reply = push(request)
            self._is_sending = False
            return reply

        return pushed


def leave(why: str) -> NoReturn:
    """End this SuperNode and drop its messages; the warm server starts another at once."""
    print(f"flsim: {why}: the work in progress is dropped, the client reconnects", flush=True)
    raise SystemExit(LEFT)


def leave_with_run(watch: RunWatch) -> None:
    """Make the SuperNode forked from this process drop the work of a run that is over.

    Flower stores a message, then pulls its parts. ``RunNotRunningException`` is a ``BaseException``
    and is not caught by the clean-up for other errors, so a message of a run that was stopped in the
    meantime stays in the node's state. Its reply is then sent in place of the next run's; in Flower
    1.42 every later reply is misplaced, too.
    """

    def wrap(pull_and_store: Wrapped) -> Wrapped:
        def pull_or_leave(**arguments: Any) -> int | None:
            if flower_processes.has_answers(arguments["state"]):  # all earlier ones were sent
                leave("a reply was left over")
            received: list[Any] = []

            def receive() -> Any:
                received.append(arguments["receive"]())
                return received[-1]

            run: int | None = pull_and_store(**{**arguments, "receive": receive})
            if received and received[-1] is not None:
                if run is None:
                    leave("a message could not be received completely")
                message_type = received[-1][0].metadata.message_type
                works = partial(flower_processes.has_work, arguments["state"])
                watch.begin(run, message_type, arguments["pull_object"], works)
            return run

        return pull_or_leave

    flower_processes.wrap_pull_and_store(wrap)


def leave_with_lost_answer() -> None:
    """Make the SuperNode forked from this process leave if a reply could not be sent completely.

    Flower logs that and drops the reply. The SuperLink of Flower 1.42 reports it to the run three
    minutes later; that of 1.43 never does, and a run without a deadline would wait for a client that
    is connected. A client that was restarted has lost its message, which the run's server knows.
    """

    def wrap(push: Wrapped) -> Wrapped:
        def push_or_leave(**arguments: Any) -> None:
            failed: list[Exception] = []
            noting = {name: _noting(arguments[name], failed) for name in ("send", "push_object")}
            push(**{**arguments, **noting})
            if failed:
                keep_trouble(f"its reply could not be sent: {_one_line(failed[0])}")
                leave("a reply could not be sent")

        return push_or_leave

    flower_processes.wrap_push(wrap)


def _noting(call: Wrapped, failed: list[Exception]) -> Wrapped:
    """The call, with its errors added to ``failed``; the end of a run is not an error."""

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
    """Make this process and its forks send a heartbeat every two seconds instead of every 20.

    A SuperNode's heartbeat shows that the client is connected. The answer to a ServerApp's or a
    ClientApp's heartbeat says whether its work is still needed, so a run that was stopped ends
    sooner. The interval that a SuperNode announces is not changed: Flower drops a message if its
    node sent no heartbeat for twice that interval, and the reply can then not be delivered.
    """
    flower_processes.set_heartbeat_interval(_HEARTBEAT)


def leave_without_heartbeats() -> Callable[[], None]:
    """Make the SuperNode forked from this process leave if its heartbeats have ended.

    Flower's thread of heartbeats ends with a reply of the SuperLink that is an error, except 502 to 504.
    The client would count as disconnected from then on, while it requests messages.

    Returns
    -------
    callable
        Leaves if they have ended, while a reply is awaited.
    """
    is_beating = flower_processes.follow_heartbeats()

    def look() -> None:
        if not is_beating():
            leave("its heartbeats have ended")

    def wrap(pull_and_store: Wrapped) -> Wrapped:
        def pull_or_leave(**arguments: Any) -> int | None:
            look()
            run: int | None = pull_and_store(**arguments)
            return run

        return pull_or_leave

    flower_processes.wrap_pull_and_store(wrap)
    return look


def list_nodes_heard_lately() -> None:
    """Make the SuperLink in this process list only nodes with a heartbeat in the last seconds.

    Flower lists a node until twice the interval that it announced has passed, which is a minute.
    """
    flower_processes.list_nodes_heard(HEARD_SECONDS)


def let_killed_nodes_return() -> None:
    """Make the SuperLink in this process accept a client that was killed and is restarted.

    A client keeps its key, so it is the same node. Flower rejects a node that it counts as connected,
    which a killed one is for a minute. One that sends heartbeats is still rejected: two processes with one
    key would take each other's messages.
    """
    flower_processes.let_nodes_return(_DEAD_SECONDS)


def give_lost_messages_again() -> None:
    """Make the SuperLink in this process give a client again the message that was lost on the way.

    Flower marks a message as delivered before the answer with it is sent. If the connection breaks in
    between, the SuperNode asks again, gets nothing, and the run waits for its reply until the message's
    time to live is over. A SuperNode asks only when it has no message, so that what it took is lost.
    """
    flower_processes.give_again()
