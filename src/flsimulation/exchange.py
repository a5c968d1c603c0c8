"""Sending the messages of one phase over a Grid and collecting the answers.

Flower's ``Grid.send_and_receive`` gives all answers at once; ``push_messages`` and
``pull_messages`` let every answer be an event as it comes, and leave the deadline to us.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message

from flsimulation.errors import ClientError
from flsimulation.events import ClientReplied, Phase, PhaseStarted, Sink
from flsimulation.messages import failure_of, metrics_of, payload_bytes

_POLL_SECONDS = 0.1  # between two looks for answers, where the grid has none ready


@dataclass
class Replies:
    """The answers of one phase."""

    cohort: tuple[int, ...]
    """Partitions that were asked, ascending."""
    by_partition: dict[int, Message] = field(default_factory=dict)
    """Answers that carry a result."""
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
        answered = self.by_partition.keys() | self.failures.keys()
        return [partition for partition in self.cohort if partition not in answered]


class PartitionedGrid(Protocol):
    """A Flower grid that knows the partition of every node."""

    @property
    def partitions(self) -> Mapping[int, int]:
        """Partition of every node that is there, by node id, ascending by partition."""

    def look(self) -> None:
        """See who came and who went since."""

    def gather(self, seconds: float) -> int:
        """Wait for clients that went away, once for each absence; gives how many are there."""

    def wait(self, least: int, seconds: float) -> bool:
        """Wait until so many clients are there; False if they do not come in time."""

    def get_node_ids(self) -> Iterable[int]:
        """Nodes in the order of their partitions."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; gives their ids."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers that are there."""


@dataclass(frozen=True)
class _Asked:
    """Who a message went to."""

    partition: int
    node: int


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

    def run(self, round: int, phase: Phase, messages: Iterable[Message]) -> Replies:
        """Send the messages, wait for the answers or the deadline, and count who is missing."""
        partitions = self.grid.partitions
        by_partition = {partitions[m.metadata.dst_node_id]: m for m in messages}
        ordered = [by_partition[partition] for partition in sorted(by_partition)]
        replies = Replies(tuple(sorted(by_partition)))
        self.emit(PhaseStarted(round, phase, replies.cohort))
        expires = time.monotonic() + self.deadline if self.deadline else float("inf")
        for message in ordered:
            replies.bytes_down += payload_bytes(message)
            if self.deadline:
                message.metadata.ttl = self.deadline  # a client can see when to give up
        ids = self.grid.push_messages(ordered)
        pending = {
            identifier: _Asked(partition, message.metadata.dst_node_id)
            for identifier, partition, message in zip(ids, replies.cohort, ordered, strict=True)
        }
        while pending and time.monotonic() < expires:
            if not self._collect(round, phase, pending, replies):
                self._give_up_lost(round, phase, pending, replies)
                time.sleep(min(_POLL_SECONDS, max(0.0, expires - time.monotonic())))
        for partition in replies.missing:
            late = ClientError("deadline", f"no answer within {self.deadline:g} s")
            self._record(round, phase, partition, late, replies)
        return replies

    def _collect(
        self, round: int, phase: Phase, pending: dict[str, _Asked], replies: Replies
    ) -> bool:
        """Take in the answers that are ready; False if there were none."""
        came = list(self.grid.pull_messages(pending.keys()))
        for message in came:
            asked = pending.pop(message.metadata.reply_to_message_id, None)
            if asked is None:
                continue  # given up as lost a moment ago
            replies.bytes_up += payload_bytes(message)
            self._record(round, phase, asked.partition, failure_of(message) or message, replies)
        return bool(came)

    def _give_up_lost(
        self, round: int, phase: Phase, pending: dict[str, _Asked], replies: Replies
    ) -> None:
        """Wait no longer for nodes that went away."""
        self.grid.look()
        there = self.grid.partitions
        for identifier, asked in list(pending.items()):
            if asked.node not in there:
                del pending[identifier]
                lost = ClientError("lost", "it went away before it answered")
                self._record(round, phase, asked.partition, lost, replies)

    def _record(
        self,
        round: int,
        phase: Phase,
        partition: int,
        answer: Message | ClientError,
        replies: Replies,
    ) -> None:
        if isinstance(answer, ClientError):
            replies.failures[partition] = answer
            failed = ClientReplied(round, phase, partition, reason=answer.reason, error=str(answer))
            self.emit(failed)
            return
        replies.by_partition[partition] = answer
        self.emit(ClientReplied(round, phase, partition, metrics_of(answer)))
