"""Handing tasks to the clients, and taking in what comes of them as it comes.

Flower's ``Grid.send_and_receive`` returns all answers at once; ``push_messages`` and
``pull_messages`` let every outcome be an event as it comes, and leave the deadline to us.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from flwr.app import Message

from flsimulation.errors import ClientError
from flsimulation.events import ClientReplied, EngineReported, Phase, PhaseStarted, Sink
from flsimulation.messages.arrays import size_of
from flsimulation.messages.batch import Batch, Outcome, Reply, outcome_bytes
from flsimulation.messages.codec import message_of, reply_of
from flsimulation.server.awaiting import Awaiting
from flsimulation.server.grid import PartitionedGrid
from flsimulation.server.replies import Replies

_POLL_SECONDS = 0.2  # between two looks for answers, where the grid has none ready

_Waiting: TypeAlias = dict[tuple[int, Phase], Replies]
"""What takes the outcome of each task that has none yet, by partition and phase."""


class _Posted(NamedTuple):
    """Tasks of one phase that are not sent yet."""

    replies: Replies
    batches: Sequence[Batch]


@dataclass(frozen=True)
class _Sent:
    """A message on its way."""

    node: int
    waiting: _Waiting
    seconds: float
    """That its outcomes may take; infinite without a deadline."""
    expires: float
    """As ``time.monotonic`` counts."""


class Exchange:
    """Carries the tasks of a federation to its clients, and the outcomes back.

    `post`, then `outcomes`: that is all. What goes into which message, and when, is not the
    caller's business.

    Parameters
    ----------
    grid : PartitionedGrid
        Whatever carries the messages.
    deadline : float
        Seconds that a phase may take; 0 for no limit.
    emit : callable
        Takes the events.
    engine : str, optional
        What the clients are known to compute with, so that they need not report it.
    why_not : str, optional
        Why they are not trained stacked, as far as that is known.
    """

    def __init__(
        self,
        grid: PartitionedGrid,
        deadline: float,
        emit: Sink,
        engine: str | None = None,
        why_not: str | None = None,
    ) -> None:
        self.grid = grid
        self._deadline, self._emit = deadline, emit
        self._engines = {(None, None), (engine, why_not)}
        self._held: list[_Posted] = []
        self._pending: dict[str, _Sent] = {}
        self._ready: deque[Reply] = deque()  # outcomes that were known before anything was sent
        self._last = Replies(0, "train")
        self._awaiting = Awaiting(0, "train", emit)

    def post(
        self,
        round: int,
        phase: Phase,
        batches: Sequence[Batch],
        messages: Mapping[int, Message] | None = None,
        *,
        can_wait: bool = False,
    ) -> Replies:
        """Let clients do the tasks of one phase.

        Parameters
        ----------
        round, phase
            As in the events; the tasks' own.
        batches : sequence of Batch
            Each client has one task at most.
        messages : mapping, optional
            The strategy's messages that the tasks come from, by partition.
        can_wait : bool
            Whether the tasks may go out with those of the next call: then messages that cost time
            are fewer. `outcomes` does not wait for them before.

        Returns
        -------
        Replies
            Filled by `outcomes`.
        """
        if any(posted.replies.phase == phase for posted in self._held):
            self._send()
        cohort = sorted(task.partition for batch in batches for task in batch.tasks)
        replies = Replies(round, phase, tuple(cohort), messages or {})
        self._held.append(_Posted(replies, batches))
        if not (can_wait and cohort and self.grid.costs_time):
            self._send()
        return replies

    def outcomes(self) -> Iterator[Reply]:
        """What comes of the tasks that were sent, as it comes, until every one has its outcome.

        Of a task that is not done by the deadline, or whose client is lost, that is an error. Whoever
        has enough may leave the loop, post more tasks, and call this again.
        """
        while self._ready or self._pending:
            came = list(self._ready) or self._take()
            self._ready.clear()
            yield from came
            if not came:
                yield from self._lost()
                self._rest()
            yield from self._late()

    def _send(self) -> None:
        """Send what is held, tasks that begin with the same model together."""
        held, self._held = self._held, []
        for posted in held:
            self._last = replies = posted.replies
            self._emit(PhaseStarted(replies.round, replies.phase, replies.cohort))
        self._awaiting = Awaiting(self._last.round, self._last.phase, self._emit)
        seconds = self._deadline * len(held)  # of each phase
        takers = {posted.replies.phase: posted.replies for posted in held}
        messages, sent = list[Message](), list[_Sent]()
        for batch in _together(held):
            for node, part in self.grid.divided(batch):
                waiting = {(t.partition, t.phase): takers[t.phase] for t in part.tasks}
                if node is None:
                    error = ClientError("lost", "it is not connected")
                    self._ready.append(self._failed(waiting, list(waiting), error))
                    continue
                _count_down(part, takers)
                expires = time.monotonic() + seconds if seconds else float("inf")
                messages.append(message_of(part, node, seconds))
                sent.append(_Sent(node, waiting, seconds, expires))
        self._pending |= zip(self.grid.push_messages(messages), sent, strict=True)

    def _take(self) -> list[Reply]:
        """Take in the replies that are there."""
        came = []
        for message in self.grid.pull_messages(self._pending.keys()):
            identifier = message.metadata.reply_to_message_id
            if (sent := self._pending.get(identifier)) is None:
                continue  # given up a moment ago
            reply = reply_of(message)
            if isinstance(reply, ClientError):
                reply = self._failed(sent.waiting, list(sent.waiting), reply)
            else:
                self._report(reply)
                self._record(sent.waiting, reply)
            if not sent.waiting:
                del self._pending[identifier]
            came.append(reply)
        if came:
            self._awaiting.answered()
        return came

    def _report(self, reply: Reply) -> None:
        """Tell what clients compute with, if that is news."""
        if (told := (reply.engine, reply.why_not)) not in self._engines:
            self._engines.add(told)
            self._emit(EngineReported(str(reply.engine), reply.why_not))

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
        partition, _, metrics, error, model = outcome
        if error is not None:
            replies.failures[partition] = error
            told = ClientReplied(
                replies.round, replies.phase, partition, reason=error.reason, error=str(error)
            )
        else:
            replies.metrics[partition] = metrics
            replies.bytes_up += outcome_bytes(outcome)
            if model is not None:
                replies.models[partition] = model
            told = ClientReplied(replies.round, replies.phase, partition, metrics)
        self._emit(told)

    def _failed(
        self, waiting: _Waiting, tasks: Iterable[tuple[int, Phase]], error: ClientError
    ) -> Reply:
        """Take the same error as the outcome of several tasks."""
        reply = Reply([Outcome(partition, phase, {}, error) for partition, phase in tasks])
        self._record(waiting, reply)
        return reply

    def _lost(self) -> Iterator[Reply]:
        """Wait no longer for nodes that went away."""
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
        """Let time pass until there may be more."""
        if self.grid.costs_time:
            self._awaiting.look(self._last.missing, len(self._last.cohort))
        first = min((sent.expires for sent in self._pending.values()), default=0.0)
        time.sleep(min(_POLL_SECONDS, max(0.0, first - time.monotonic())))

    def _late(self) -> Iterator[Reply]:
        """Wait no longer for what is not done by its deadline."""
        now = time.monotonic()
        for identifier, sent in list(self._pending.items()):
            if sent.expires <= now:
                del self._pending[identifier]
                late = ClientError("deadline", f"no answer within {sent.seconds:g} s")
                yield self._failed(sent.waiting, list(sent.waiting), late)


def _together(held: Iterable[_Posted]) -> list[Batch]:
    """Batches of several phases, those that begin with the same model as one."""
    found: dict[int, Batch] = {}
    for posted in held:
        for batch in posted.batches:
            before = found.get(id(batch.model))
            found[id(batch.model)] = (
                batch
                if before is None
                else replace(
                    batch,
                    tasks=[*before.tasks, *batch.tasks],
                    average=before.average or batch.average,
                )
            )
    return list(found.values())


def _count_down(batch: Batch, takers: Mapping[Phase, Replies]) -> None:
    """Count what each client's own message would hold: the model once, with its last task."""
    model = size_of(batch.model)
    sizes: dict[int, int] = {}  # of settings that many clients share
    last = {task.partition: task.phase for task in batch.tasks}
    for task in batch.tasks:
        if (settings := id(task.config)) not in sizes:
            sizes[settings] = size_of(task.config)
        takers[task.phase].bytes_down += sizes[settings]
    for phase in last.values():
        takers[phase].bytes_down += model
