"""Which node holds which partition, where the runtime does not say: on a network of clients.

A client that its configuration gives a partition keeps it. The others get the lowest free one, and
the server remembers them by name, so that a client that comes back gets its own again and two
never share one. Clients beyond the experiment's number are spares: they take over what gets free.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flsimulation.atomic import write_atomic
from flsimulation.errors import RunError
from flsimulation.events import ClientsConnected, Sink
from flsimulation.messages import assign, identity_of
from flsimulation.packing import is_packed, pack, unpack

if TYPE_CHECKING:
    from flwr.supercore.run import Run  # not public; what `Grid` itself is annotated with

_LOOK_SECONDS = 0.5  # between two looks at who is there


@dataclass(frozen=True)
class Identity:
    """What a node says of itself."""

    name: str
    """Stays the same when the client comes back, unlike Flower's node id."""
    partition: int | None
    """The partition that its configuration gives it."""


class PartitionTable:
    """Partitions of the nodes that are there.

    Parameters
    ----------
    clients : int
        Number of partitions.
    memory : Path, optional
        File that keeps each name's partition from run to run.
    """

    def __init__(self, clients: int, memory: Path | None = None) -> None:
        self._clients = clients
        self._memory = memory
        self._remembered = _read(memory)
        self._identities: dict[int, Identity] = {}
        self.partitions: dict[int, int] = {}
        """Partition of every node that has one, by partition."""

    @property
    def nodes(self) -> set[int]:
        """Every node that said who it is, spares included."""
        return set(self._identities)

    def update(self, online: Iterable[int], met: Mapping[int, Identity]) -> None:
        """Forget nodes that are gone, take in those that were met, and fill what is free.

        Raises
        ------
        RunError
            If two clients are configured for one partition, or one for a partition that there
            is not.
        """
        there = set(online)
        self._identities = {n: i for n, i in self._identities.items() if n in there}
        for node, identity in met.items():
            self._check(identity)
            # A name that comes a second time is a client that was started anew: its old node is
            # dead, although a SuperLink takes a minute to notice.
            self._identities = {
                n: i for n, i in self._identities.items() if i.name != identity.name
            }
            self._identities[node] = identity
        held = {n: p for n, p in self.partitions.items() if n in self._identities}
        self.partitions = held
        self._fill()
        self.partitions = dict(sorted(self.partitions.items(), key=lambda item: item[1]))

    def _check(self, identity: Identity) -> None:
        wanted = identity.partition
        if wanted is None:
            return
        if not 0 <= wanted < self._clients:
            raise RunError(
                f"client {identity.name} is configured for partition {wanted}, but the experiment "
                f"has partitions 0 to {self._clients - 1}; change its partition or data.clients"
            )
        for other in self._identities.values():
            if other.partition == wanted and other.name != identity.name:
                raise RunError(
                    f"clients {other.name} and {identity.name} are both configured for partition "
                    f"{wanted}; give each its own"
                )

    def _fill(self) -> None:
        for node, identity in self._identities.items():  # first those that may have no other
            if identity.partition is not None and node not in self.partitions:
                self._evict(identity.partition)
                self.partitions[node] = identity.partition
        without = [n for n in self._identities if n not in self.partitions]
        without.sort(key=lambda node: self._identities[node].name)
        for own in (True, False):  # then those that come back, and last those that are new
            for node in without:
                if node not in self.partitions:
                    self._place(node, own=own)
        self._remember()

    def _place(self, node: int, *, own: bool) -> None:
        free = [p for p in range(self._clients) if p not in self.partitions.values()]
        name = self._identities[node].name
        if own:
            free = [p for p in free if self._remembered.get(name) == p]
        else:  # what nobody is expected back to, before what somebody is
            free.sort(key=lambda p: (p in self._remembered.values(), p))
        if free:
            self.partitions[node] = free[0]

    def _evict(self, partition: int) -> None:
        self.partitions = {n: p for n, p in self.partitions.items() if p != partition}

    def _remember(self) -> None:
        names = {self._identities[n].name: p for n, p in self.partitions.items()}
        old = {n: p for n, p in self._remembered.items() if p not in names.values()}
        now = old | names
        if now != self._remembered:
            self._remembered = now
            if self._memory is not None:
                self._memory.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._memory, json.dumps(now, indent=2) + "\n")


class AssignedGrid(Grid):
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
        self._table.update(online, self._answers(online))
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

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that hold a partition, by partition, so that a seed samples the same clients."""
        return list(self.partitions)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, each with the partition that its node holds."""
        return self._grid.push_messages(self._addressed(messages))

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


def _read(memory: Path | None) -> dict[str, int]:
    """Partition by name; a file that is damaged is as good as none."""
    if memory is None or not memory.is_file():
        return {}
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {str(name): p for name, p in pairs if isinstance(p, int) and not isinstance(p, bool)}
