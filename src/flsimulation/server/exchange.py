"""Sends tasks to the clients, and receives their outcomes as they arrive.

Flower's ``Grid.send_and_receive`` returns all replies at once. With ``push_messages`` and
``pull_messages``, every outcome is an event when it arrives, and deadlines are checked here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from flwr.app import Message

from flsimulation.clock import SYSTEM, Clock
from flsimulation.errors import ClientError
from flsimulation.events import UNSEEN, ClientReplied, EngineReported, Phase, PhaseStarted, Sink
from flsimulation.host.warned import pass_on
from flsimulation.messages.arrays import size_of
from flsimulation.messages.batch import Batch, Outcome, Reply, outcome_bytes, together
from flsimulation.messages.codec import message_of
from flsimulation.messages.received import read_reply, rejected
from flsimulation.server.awaiting import Awaiting
from flsimulation.server.checks import Checks
from flsimulation.server.grid import PartitionedGrid
from flsimulation.server.replies import Replies, count_down

_POLL_SECONDS = 0.2  # between two requests for replies, if there was none
_CHECKS = Checks()

_Waiting: TypeAlias = dict[tuple[int, Phase], Replies]
"""The `Replies` of each task without an outcome, by partition and phase."""


class _Posted(NamedTuple):
    """Tasks of one phase that are not sent yet."""

    replies: Replies
    batches: Sequence[Batch]


@dataclass(frozen=True)
class _Sent:
    """A message whose reply is not complete."""

    node: int
    batch: Batch
    waiting: _Waiting
    seconds: float
    """Limit for its outcomes; 0 without a deadline."""
    expires: float
    """Its deadline, as the clock's ``monotonic`` counts; infinite without one."""


class Exchange:
    """Sends the tasks of a federation to its clients, and receives the outcomes.

    Callers call `post`, then `outcomes`; which message contains which tasks, and when it is sent, is
    decided here.

    Parameters
    ----------
    grid : PartitionedGrid
        The grid that sends the messages.
    deadline : float
        Seconds that a phase may take; 0 for no limit.
    emit : callable
        Called with the events.
    engine : str, optional
        The clients' engine if it is known; an engine that differs is reported as an event.
    why_not : str, optional
        Why they are not trained stacked, if known.
    clock : Clock
        The clock to use.
    checks : Checks
        Checks every reply before it is used.
    agreement : str
        What sites agreed on, as JSON; sent with every task.
    """

    def __init__(
        self,
        grid: PartitionedGrid,
        deadline: float,
        emit: Sink,
        engine: str | None = None,
        why_not: str | None = None,
        clock: Clock = SYSTEM,
        checks: Checks = _CHECKS,
        agreement: str = "",
    ) -> None:
        self.grid, self._agreement = grid, agreement
        self._deadline, self._emit, self._clock, self._checks = deadline, emit, clock, checks
        self._engines = {(None, None), (engine, why_not)}
        self._held: list[_Posted] = []
        self._pending: dict[str, _Sent] = {}
        self._ready: deque[Reply] = deque()  # outcomes of tasks that could not be sent
        self._last = Replies(0, "train")
        self._awaiting = Awaiting(0, "train", emit, clock)

    def post(
        self,
        round: int,
        phase: Phase,
        batches: Sequence[Batch],
        messages: Mapping[int, Message] | None = None,
        *,
        can_wait: bool = False,
        apart: bool = False,
    ) -> Replies:
        """Post the tasks of one phase to the clients.

        Parameters
        ----------
        round, phase
            Round and phase of the tasks.
        batches : sequence of Batch
            At most one task per client.
        messages : mapping, optional
            The strategy's messages that the tasks are from, by partition.
        can_wait : bool
            Whether the tasks may be sent together with those of the next call, which saves messages
            on a slow grid. Until then, `outcomes` does not wait for them.
        apart : bool
            Whether the tasks are sent alone, and those that wait go on waiting.

        Returns
        -------
        Replies
            Filled by `outcomes`.
        """
        if any(posted.replies.phase == phase for posted in self._held):
            self._send_held()
        cohort = sorted(task.partition for batch in batches for task in batch.tasks)
        replies = Replies(round, phase, tuple(cohort), messages or {})
        posted = _Posted(replies, batches)
        if apart:
            self._send([posted])
            return replies
        self._held.append(posted)
        if not (can_wait and cohort and self.grid.costs_time):
            self._send_held()
        return replies

    def outcomes(self) -> Iterator[Reply]:
        """Yield the outcomes of the tasks that were sent, as they arrive, until every task has one.

        The outcome of a task that is not done by the deadline, or whose client is lost, is an error.
        A caller may leave the loop, post more tasks, and call this again.
        """
        while self._ready or self._pending:
            arrived = list(self._ready) or self._take()
            self._ready.clear()
            yield from arrived
            if not arrived:
                yield from self._lost()
                self._rest()
            yield from self._late()

    def _send_held(self) -> None:
        held, self._held = self._held, []
        self._send(held)

    def _send(self, held: Sequence[_Posted]) -> None:
        """Send posted tasks, those that begin with the same model together."""
        for posted in held:
            self._last = replies = posted.replies
            if replies.phase not in UNSEEN:
                self._emit(PhaseStarted(replies.round, replies.phase, replies.cohort))
        self._awaiting = Awaiting(self._last.round, self._last.phase, self._emit, self._clock)
        seconds = self._deadline * len(held)  # a deadline per phase
        takers = {posted.replies.phase: posted.replies for posted in held}
        messages, sent = list[Message](), list[_Sent]()
        for batch in together(batch for posted in held for batch in posted.batches):
            for node, part in self.grid.divided(batch):
                waiting = {(t.partition, t.phase): takers[t.phase] for t in part.tasks}
                if node is None:
                    error = ClientError("lost", "it is not connected")
                    self._ready.append(self._failed(waiting, list(waiting), error))
                    continue
                count_down(part, takers)
                expires = self._clock.monotonic() + seconds if seconds else float("inf")
                part = replace(part, agreement=self._agreement)
                messages.append(message_of(part, node, seconds, self._clock))
                sent.append(_Sent(node, part, waiting, seconds, expires))
        self._pending |= zip(self.grid.push_messages(messages), sent, strict=True)

    def _take(self) -> list[Reply]:
        """Receive the replies that have arrived."""
        arrived = list[Reply]()
        for message in self.grid.pull_messages(self._pending.keys()):
            identifier = message.metadata.reply_to_message_id
            if (sent := self._pending.get(identifier)) is None:
                continue  # its deadline has just passed
            arrived += self._received(read_reply(message), sent)
            if not sent.waiting:
                del self._pending[identifier]
        if arrived:
            self._awaiting.answered()
        return arrived

    def _report(self, reply: Reply) -> None:
        """Emit an event with the clients' engine, if it is a new one; keep their warnings."""
        pass_on(reply.warned)
        if (engine := (reply.engine, reply.why_not)) not in self._engines:
            self._engines.add(engine)
            self._emit(EngineReported(str(reply.engine), reply.why_not))

    def _received(self, reply: Reply | ClientError, sent: _Sent) -> Iterator[Reply]:
        """Check a reply, and record its outcomes; tasks that have none will not get one later."""
        if isinstance(reply, ClientError):
            yield self._failed(sent.waiting, list(sent.waiting), reply)
            return
        self._report(reply)
        reply = self._checks.checked(reply, sent.batch, sent.waiting)
        self._record(sent.waiting, reply)
        yield reply
        if sent.waiting and not self.grid.replies_in_parts:
            missing = rejected("its reply has no outcome of this task")
            yield self._failed(sent.waiting, list(sent.waiting), missing)

    def _record(self, waiting: _Waiting, reply: Reply) -> None:
        trained: list[int] = []
        for outcome in reply.outcomes:
            replies = waiting.pop((outcome.partition, outcome.phase), None)
            if replies is None:
                continue
            self._take_in(replies, outcome)
            if outcome.phase == "train" and outcome.error is None:
                trained.append(outcome.partition)
                last = replies
        if reply.mean is not None and trained:  # each client would have sent its own model
            last.means[min(trained)] = reply.mean
            last.bytes_up += size_of(reply.mean.model) * len(trained)

    def _take_in(self, replies: Replies, outcome: Outcome) -> None:
        partition, _, metrics, error, model, states, left_out, text = outcome
        if error is not None:
            replies.failures[partition] = error
            event = ClientReplied(
                replies.round, replies.phase, partition, reason=error.reason, error=str(error)
            )
        else:
            replies.metrics[partition] = metrics
            replies.bytes_up += outcome_bytes(outcome)
            if model is not None:
                replies.models[partition] = model
            if states is not None:
                replies.states[partition] = states
            if text:
                replies.texts[partition] = text
            if left_out:
                replies.left_out[partition] = left_out
            event = ClientReplied(replies.round, replies.phase, partition, metrics)
        if replies.phase not in UNSEEN:
            self._emit(event)

    def _failed(
        self, waiting: _Waiting, tasks: Iterable[tuple[int, Phase]], error: ClientError
    ) -> Reply:
        """Record the same error as the outcome of several tasks."""
        reply = Reply([Outcome(partition, phase, {}, error) for partition, phase in tasks])
        self._record(waiting, reply)
        return reply

    def _lost(self) -> Iterator[Reply]:
        """Fail the tasks of disconnected nodes that will not reply."""
        self.grid.look()
        there = self.grid.partitions
        for identifier, sent in list(self._pending.items()):
            if sent.node in there:
                continue
            partition, _ = next(iter(sent.waiting))
            if (why := self.grid.why_lost(partition, sent.node)) is not None:
                del self._pending[identifier]
                yield self._failed(sent.waiting, list(sent.waiting), ClientError("lost", why))

    def _rest(self) -> None:
        """Sleep until the next request for replies."""
        if self.grid.costs_time:
            self._awaiting.look(self._last.missing, len(self._last.cohort))
        first = min((sent.expires for sent in self._pending.values()), default=0.0)
        self._clock.sleep(min(_POLL_SECONDS, max(0.0, first - self._clock.monotonic())))

    def _late(self) -> Iterator[Reply]:
        """Fail the tasks whose deadline has passed."""
        now = self._clock.monotonic()
        for identifier, sent in list(self._pending.items()):
            if sent.expires <= now:
                del self._pending[identifier]
                late = ClientError("deadline", f"no reply within {sent.seconds:g} s")
                yield self._failed(sent.waiting, list(sent.waiting), late)
