"""Sending the messages of one phase over a Grid and collecting the answers.

Flower's ``Grid.send_and_receive`` gives all answers at once; ``push_messages`` and
``pull_messages`` let every answer be an event as it comes, and leave the deadline to us.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

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


def partitions_of(grid: Grid) -> Mapping[int, int]:
    """Partition of every node, by node id: the grid's own table, else by asking each node."""
    table: Mapping[int, int] | None = getattr(grid, "partitions", None)
    if table is not None:
        return table
    question = RecordDict()
    asked = [Message(question, node, MessageType.QUERY) for node in grid.get_node_ids()]
    answers = grid.send_and_receive(asked)
    return {
        answer.metadata.src_node_id: int(metrics_of(answer)["partition-id"]) for answer in answers
    }


@dataclass(frozen=True)
class Exchange:
    """Carries the phases of a federation.

    Parameters
    ----------
    grid : Grid
        Whatever carries the messages.
    partitions : mapping of int to int
        Partition of every node id.
    deadline : float
        Seconds that a phase may take; 0 for no limit.
    emit : callable
        Takes the events.
    """

    grid: Grid
    partitions: Mapping[int, int]
    deadline: float
    emit: Sink

    def run(self, round: int, phase: Phase, messages: Iterable[Message]) -> Replies:
        """Send the messages, wait for the answers or the deadline, and count who is missing."""
        by_partition = {self.partitions[m.metadata.dst_node_id]: m for m in messages}
        ordered = [by_partition[partition] for partition in sorted(by_partition)]
        replies = Replies(tuple(sorted(by_partition)))
        self.emit(PhaseStarted(round, phase, replies.cohort))
        expires = time.monotonic() + self.deadline if self.deadline else float("inf")
        for message in ordered:
            replies.bytes_down += payload_bytes(message)
            if self.deadline:
                message.metadata.ttl = self.deadline  # a client can see when to give up
        pending = dict(zip(replies.cohort, self.grid.push_messages(ordered), strict=True))
        while pending and time.monotonic() < expires:
            if not self._collect(round, phase, pending, replies):
                time.sleep(min(_POLL_SECONDS, max(0.0, expires - time.monotonic())))
        for partition in replies.missing:
            late = ClientError("deadline", f"no answer within {self.deadline:g} s")
            self._record(round, phase, partition, late, replies)
        return replies

    def _collect(self, round: int, phase: Phase, pending: dict[int, str], replies: Replies) -> bool:
        """Take in the answers that are ready; False if there were none."""
        came = list(self.grid.pull_messages(pending.values()))
        for message in came:
            partition = self.partitions[message.metadata.src_node_id]
            pending.pop(partition, None)
            replies.bytes_up += payload_bytes(message)
            self._record(round, phase, partition, failure_of(message) or message, replies)
        return bool(came)

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
