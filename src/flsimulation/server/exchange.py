"""Sending the messages of one phase over a Grid and collecting the answers.

Flower's ``Grid.send_and_receive`` gives all answers at once; ``push_messages`` and
``pull_messages`` let every answer be an event as it comes, and leave the deadline to us.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flsimulation.errors import ClientError
from flsimulation.events import ClientReplied, Phase, PhaseStarted, Sink
from flsimulation.messages.arrays import size_of
from flsimulation.messages.batch import CohortAnswer, cohort_answer
from flsimulation.messages.content import failure_of, merge, metrics_of, payload_bytes, split
from flsimulation.server.awaiting import Awaiting

_POLL_SECONDS = 0.2  # between two looks for answers, where the grid has none ready


@dataclass
class Replies:
    """The answers of one phase."""

    cohort: tuple[int, ...]
    """Partitions that were asked, ascending."""
    by_partition: dict[int, Message] = field(default_factory=dict)
    """Answers that carry one client's result."""
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """The numbers of all clients that succeeded."""
    means: dict[int, tuple[ArrayRecord, int]] = field(default_factory=dict)
    """Mean models of clients that answered together, with the examples behind each, by the lowest
    partition."""
    failures: dict[int, ClientError] = field(default_factory=dict)
    """Why the others do not."""
    bytes_down: int = 0
    bytes_up: int = 0

    @property
    def results(self) -> list[Message]:
        """Results in the order of partitions, whatever order they came in."""
        return [self.by_partition[partition] for partition in sorted(self.by_partition)]

    @property
    def missing(self) -> list[int]:
        """Partitions that have not answered yet."""
        answered = self.metrics.keys() | self.failures.keys()
        return [partition for partition in self.cohort if partition not in answered]


class PartitionedGrid(Grid):
    """A Flower grid that knows the partition of every node."""

    @property
    @abstractmethod
    def partitions(self) -> Mapping[int, int]:
        """Partition of every node that is there, by node id, ascending by partition."""

    @property
    @abstractmethod
    def costs_time(self) -> bool:
        """Whether a message takes so long that two phases had better share one."""

    @property
    def averages(self) -> bool:
        """Whether messages may ask for their clients' mean model in place of each one's."""
        return False

    @abstractmethod
    def look(self) -> None:
        """See who came and who went since."""

    @abstractmethod
    def gather(self, seconds: float) -> int:
        """Wait for clients that went away, once for each absence; gives how many are there."""

    @abstractmethod
    def wait(self, least: int, seconds: float) -> bool:
        """Wait until so many clients are there; False if they do not come in time."""

    def why_lost(self, partition: int, node: int) -> str | None:  # noqa: ARG002 - of networks
        """Why no answer will come from a node that went away; None if one still may."""
        return "it went away before it answered"

    def node_of(self, partition: int) -> int | None:
        """The node that holds a partition now, or None."""
        return next((node for node, held in self.partitions.items() if held == partition), None)

    def get_node_ids(self) -> Iterable[int]:
        """Nodes by partition, so that a seed samples the same clients in every runtime."""
        return list(self.partitions)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message from the server to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


@dataclass(frozen=True)
class Errand:
    """The messages of one phase."""

    round: int
    phase: Phase
    messages: Mapping[int, Message]
    """By partition."""


class _Asked(NamedTuple):
    """Who a message went to, and on which errands."""

    partition: int
    node: int
    errands: tuple[int, ...]
    """One, or evaluation and training."""


@dataclass(frozen=True)
class Exchange:
    """Carries the phases of a federation.

    Parameters
    ----------
    grid : PartitionedGrid
        Whatever carries the messages.
    deadline : float
        Seconds that a phase may take; 0 for no limit.
    emit : callable
        Takes the events.
    """

    grid: PartitionedGrid
    deadline: float
    emit: Sink

    def errand(self, round: int, phase: Phase, messages: Iterable[Message]) -> Errand:
        """A strategy's messages, by the partitions that their nodes hold now."""
        partitions = self.grid.partitions
        return Errand(round, phase, {partitions[m.metadata.dst_node_id]: m for m in messages})

    def run(self, *errands: Errand) -> list[Replies]:
        """Send the messages, wait for the answers or the deadline, and count who is missing.

        Two errands, evaluation and training of the same model, go to a node in one message.
        """
        return _Phase(self, errands).run()


class _Phase:
    """One exchange, from its messages to the last answer."""

    def __init__(self, exchange: Exchange, errands: tuple[Errand, ...]) -> None:
        self._grid, self._emit = exchange.grid, exchange.emit
        self._deadline = exchange.deadline * len(errands)  # of each phase
        self._errands = errands
        self._replies = [Replies(tuple(sorted(errand.messages))) for errand in errands]
        self._pending: dict[str, _Asked] = {}
        self._sent: dict[int, str] = {}  # the last message to each partition
        self._awaiting = Awaiting(errands[-1].round, errands[-1].phase, exchange.emit)

    def run(self) -> list[Replies]:
        for errand, replies in zip(self._errands, self._replies, strict=True):
            self._emit(PhaseStarted(errand.round, errand.phase, replies.cohort))
        expires = time.monotonic() + self._deadline if self._deadline else float("inf")
        self._send()
        while self._pending and time.monotonic() < expires:
            if not self._collect():
                self._give_up_lost()
                if self._grid.costs_time:
                    self._awaiting.look(self._replies[-1].missing, len(self._replies[-1].cohort))
                time.sleep(min(_POLL_SECONDS, max(0.0, expires - time.monotonic())))
        for index, replies in enumerate(self._replies):
            for partition in replies.missing:
                late = ClientError("deadline", f"no answer within {self._deadline:g} s")
                self._record(index, partition, late)
        return self._replies

    def _send(self) -> None:
        messages, asked = [], []
        wanted_by: dict[int, list[int]] = {}
        for index, errand in enumerate(self._errands):
            for partition in errand.messages:
                wanted_by.setdefault(partition, []).append(index)
        for partition, wanted in sorted(wanted_by.items()):
            if (node := self._grid.node_of(partition)) is None:
                for index in wanted:
                    self._record(index, partition, ClientError("lost", "it is not connected"))
                continue
            for message, errands in self._merged(partition, wanted):
                messages.append(_addressed(message, node))
                asked.append(_Asked(partition, node, errands))
        sizes: dict[int, int] = {}
        for message, to in zip(messages, asked, strict=True):
            # of two errands the model belongs to the training, which is the last
            if (content := id(message.content)) not in sizes:  # of many messages the same
                sizes[content] = payload_bytes(message)
            self._replies[to.errands[-1]].bytes_down += sizes[content]
            if self._deadline:
                message.metadata.ttl = self._deadline  # a client can see when to give up
        self._pending = dict(zip(self._grid.push_messages(messages), asked, strict=True))
        self._sent = {to.partition: identifier for identifier, to in self._pending.items()}

    def _merged(
        self, partition: int, wanted: list[int]
    ) -> Iterator[tuple[Message, tuple[int, ...]]]:
        messages = [self._errands[index].messages[partition] for index in wanted]
        if len(messages) == 2 and (both := merge(messages[1], messages[0])) is not None:
            yield both, tuple(wanted)
            return
        for index, message in zip(wanted, messages, strict=True):
            yield message, (index,)

    def _collect(self) -> bool:
        """Take in the answers that are ready; False if there were none."""
        came = list(self._grid.pull_messages(self._pending.keys()))
        if came:
            self._awaiting.answered()
        for answer in came:
            asked = self._pending.pop(answer.metadata.reply_to_message_id, None)
            if asked is None:
                continue  # given up as lost a moment ago
            if (together := cohort_answer(answer)) is not None:
                self._take_together(together)
                continue
            self._replies[asked.errands[-1]].bytes_up += payload_bytes(answer)
            parts = [answer]
            if len(asked.errands) == 2:
                evaluate = self._errands[asked.errands[0]].messages[asked.partition]
                parts = list(reversed(split(answer, evaluate)))
            for index, part in zip(asked.errands, parts, strict=True):
                self._record(index, asked.partition, failure_of(part) or part)
        return bool(came)

    def _take_together(self, answer: CohortAnswer) -> None:
        """Take in what several clients answer in one message."""
        (errand,), (replies,) = self._errands, self._replies
        if answer.mean is not None:  # each client would have sent its own model and numbers
            replies.means[min(answer.metrics)] = answer.mean, answer.examples
            numbers = MetricRecord({**next(iter(answer.metrics.values()))})
            each = size_of(answer.mean) + size_of(numbers)
            replies.bytes_up += each * len(answer.metrics)
        for partition, metrics in answer.metrics.items():
            replies.metrics[partition] = metrics
            self._emit(ClientReplied(errand.round, errand.phase, partition, metrics))
        for partition, error in answer.failures.items():
            self._record(0, partition, error)
        for partition in (*answer.metrics, *answer.failures):
            self._pending.pop(self._sent[partition], None)

    def _give_up_lost(self) -> None:
        """Wait no longer for nodes that went away."""
        self._grid.look()
        there = self._grid.partitions
        for identifier, asked in list(self._pending.items()):
            if (
                asked.node in there
                or (why := self._grid.why_lost(asked.partition, asked.node)) is None
            ):
                continue
            del self._pending[identifier]
            for index in asked.errands:
                self._record(index, asked.partition, ClientError("lost", why))

    def _record(self, index: int, partition: int, answer: Message | ClientError) -> None:
        errand, replies = self._errands[index], self._replies[index]
        round, phase = errand.round, errand.phase
        if isinstance(answer, ClientError):
            replies.failures[partition] = answer
            told = ClientReplied(round, phase, partition, reason=answer.reason, error=str(answer))
        else:
            replies.by_partition[partition] = answer
            replies.metrics[partition] = metrics_of(answer)
            told = ClientReplied(round, phase, partition, replies.metrics[partition])
        self._emit(told)


def _addressed(message: Message, node: int) -> Message:
    """The message to the node that holds the partition now."""
    told = message.metadata
    if told.dst_node_id == node:
        return message
    return Message(message.content, node, told.message_type, group_id=told.group_id)
