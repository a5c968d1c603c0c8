"""What the runtimes have in common in which clients are no programs: nodes that are always there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import Message

from flsimulation.internals.flower_messages import Run, empty_run, identity, set_message_id
from flsimulation.server.grid import PartitionedGrid

RUN_ID = 1
SERVER_NODE_ID = 1
_FIRST_NODE_ID = 2  # of partition 0


class _Nodes(Mapping[int, int]):
    """Partition by node of any number of clients, without a table."""

    def __init__(self, clients: int) -> None:
        self._ids = range(_FIRST_NODE_ID, _FIRST_NODE_ID + clients)

    def __getitem__(self, node: int) -> int:
        if node not in self._ids:
            raise KeyError(node)
        return node - _FIRST_NODE_ID

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def values(self) -> Any:
        """The partitions, ascending; not asked for one by one."""
        return range(len(self._ids))


class SimulatedGrid(PartitionedGrid):
    """Nodes ordered by partition, none of which comes or goes, and messages that cost no time.

    Parameters
    ----------
    clients : int
        Number of nodes, one a partition.
    averages : bool
        Whether clients that train together can return their mean model.
    """

    def __init__(self, clients: int, *, averages: bool = False) -> None:
        self._averages = averages
        self._run = empty_run(RUN_ID)
        self._pushed = 0
        self._partitions = _Nodes(clients)
        self._nodes = list(self._partitions)  # strategies list them twice a round

    @property
    def partitions(self) -> Mapping[int, int]:
        """Partition of every node id; all nodes are there."""
        return self._partitions

    @property
    def costs_time(self) -> bool:
        """A message costs next to nothing."""
        return False

    @property
    def averages(self) -> bool:
        """Whether clients that train together can return their mean model."""
        return self._averages

    def node_of(self, partition: int) -> int | None:
        """The node that holds a partition."""
        node = _FIRST_NODE_ID + partition
        return node if node in self._partitions else None

    def get_node_ids(self) -> Iterable[int]:
        """Nodes by partition."""
        return self._nodes

    def look(self) -> None:
        """Nobody comes or goes."""

    def gather(self, seconds: float) -> int:  # noqa: ARG002 - nobody is away
        """All clients are there."""
        return len(self.partitions)

    def wait(self, least: int, seconds: float) -> bool:  # noqa: ARG002
        """Whether there are so many clients; there will not be more."""
        return len(self.partitions) >= least

    def set_run(self, run: Run) -> None:
        """Take over the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def _named(self, message: Message) -> str:
        """Give a message an id, and return it."""
        self._pushed += 1
        set_message_id(message, identifier := str(self._pushed))
        return identifier


def expires(message: Message) -> float:
    """Unix time in seconds after which a SuperLink would drop a message."""
    return message.metadata.created_at + message.metadata.ttl


@contextlib.contextmanager
def flower_identity() -> Iterator[None]:
    """Give Flower's messages the identity of a run's server inside the block."""
    with identity(1, RUN_ID, SERVER_NODE_ID):
        yield
