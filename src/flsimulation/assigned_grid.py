"""Flower's grid of a network, with a partition for each node."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flsimulation.assignment import Identity, PartitionTable
from flsimulation.events import ClientsConnected, Sink
from flsimulation.exchange import PartitionedGrid
from flsimulation.messages import assign, identity_of
from flsimulation.packing import is_packed, pack, unpack

if TYPE_CHECKING:
    from flwr.supercore.run import Run  # not public; what `Grid` itself is annotated with

_LOOK_SECONDS = 0.5  # between two looks at who is there


class AssignedGrid(PartitionedGrid):
    """Flower's grid with a partition for each node; messages tell the node which it holds.

    Parameters
    ----------
    grid : Grid
        Flower's own.
    table : PartitionTable
        Who holds what.
    expected : int
        Clients that the experiment asks for.
    emit : callable
        Is told when a client comes or goes.
    """

    def __init__(self, grid: Grid, table: PartitionTable, expected: int, emit: Sink) -> None:
        self._grid = grid
        self._table = table
        self._expected = expected
        self._emit = emit
        self._asked: dict[str, int] = {}
        self._told: tuple[int, ...] | None = None
        self._given_up: set[int] = set()  # partitions that a round began without
        self._looked = float("-inf")
        self._begun = False  # whether all clients were there once
        self.trouble = ""
        """What the last client said that could not say who it is, as the end of a sentence."""

    @property
    def partitions(self) -> Mapping[int, int]:
        """Partition of every node that has one and is there, by partition."""
        return self._table.partitions

    @property
    def costs_time(self) -> bool:
        """A message over a network takes part of a second, and a process of the client's."""
        return True

    def look(self) -> None:
        """See who came and who went; asks new nodes for their name, without waiting."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        online = set(self._grid.get_node_ids())
        new = online - self._table.nodes - set(self._asked.values())
        if new:
            questions = [Message(RecordDict(), n, MessageType.QUERY) for n in sorted(new)]
            ids = self._grid.push_messages(questions)
            self._asked |= dict(zip(ids, sorted(new), strict=True))
        self._table.update(online, self._answers(online), strict=not self._begun)
        if (partitions := tuple(self.partitions.values())) != self._told:
            self._told = partitions
            self._emit(ClientsConnected(partitions, self._expected))
        self._looked = time.monotonic()

    def wait(self, least: int, seconds: float) -> bool:
        """Wait until so many clients hold a partition; False if they do not come in time."""
        until = time.monotonic() + seconds
        self.look()
        while len(self.partitions) < least and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            self.look()
        self._begun = self._begun or len(self.partitions) >= self._expected
        return len(self.partitions) >= least

    def gather(self, seconds: float) -> int:
        """Wait for clients that went away, once for each absence; gives how many are there."""
        self.look()
        if self._absent() - self._given_up:
            self.wait(self._expected, seconds)
        self._given_up = self._absent()
        return len(self.partitions)

    def _absent(self) -> set[int]:
        return set(range(self._expected)) - set(self.partitions.values())

    def _answers(self, online: set[int]) -> dict[int, Identity]:
        self._asked = {m: n for m, n in self._asked.items() if n in online}
        met = {}
        for answer in self._grid.pull_messages(list(self._asked)) if self._asked else ():
            node = self._asked.pop(answer.metadata.reply_to_message_id, None)
            if node is not None and answer.has_error():
                self.trouble = f"; a client answers: {answer.error.reason or answer.error.code}"
            elif node is not None:
                met[node] = Identity(*identity_of(answer))
        return met

    def set_run(self, run: Run) -> None:
        """Pass on the run's description."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._grid.run

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, each with the partition that its node holds."""
        # One by one: Flower shows a node its message before the message's parts are there, and many
        # nodes that ask for parts again and again keep the SuperLink from taking them.
        return [i for m in self._addressed(messages) for i in self._grid.push_messages([m])]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers that are there."""
        return [_unpacked(answer) for answer in self._grid.pull_messages(list(message_ids))]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for the answers, with Flower's own polling."""
        answers = self._grid.send_and_receive(self._addressed(messages), timeout=timeout)
        return [_unpacked(answer) for answer in answers]

    def _addressed(self, messages: Iterable[Message]) -> list[Message]:
        """Copies to send: the messages themselves may be looked at again, and stay as they are."""
        models: dict[int, ConfigRecord | ArrayRecord] = {}  # most often one, the same for all
        addressed = list(messages)
        for message in addressed:
            assign(message, self.partitions[message.metadata.dst_node_id])
        return [_packed(message, models) for message in addressed]


def _packed(message: Message, models: dict[int, ConfigRecord | ArrayRecord]) -> Message:
    content, told = pack(message.content, models), message.metadata
    return Message(
        content, told.dst_node_id, told.message_type, ttl=told.ttl, group_id=told.group_id
    )


def _unpacked(answer: Message) -> Message:
    if answer.has_content() and is_packed(answer.content):
        answer.content = unpack(answer.content)
    return answer
