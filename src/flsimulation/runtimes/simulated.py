"""Common parts of the runtimes without client programs: all nodes are always connected."""

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
    """Mapping from node to partition for any number of clients, without a table."""

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
        """The partitions, ascending; without a look-up for each."""
        return range(len(self._ids))


class SimulatedGrid(PartitionedGrid):
    """A grid whose nodes are ordered by partition and always connected, and with fast messages.

    Parameters
    ----------
    clients : int
        Number of nodes, one per partition.
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
        """Partition of every node id; all nodes are connected."""
        return self._partitions

    @property
    def costs_time(self) -> bool:
        """No: messages are fast."""
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
        """Nodes, ordered by partition."""
        return self._nodes

    def look(self) -> None:
        """Do nothing: nodes do not connect or disconnect."""

    def gather(self, seconds: float) -> int:  # noqa: ARG002 - no client is disconnected
        """Number of clients, which are all connected."""
        return len(self.partitions)

    def wait(self, least: int, seconds: float) -> bool:  # noqa: ARG002
        """Whether there are at least ``least`` clients; their number does not change."""
        return len(self.partitions) >= least

    def set_run(self, run: Run) -> None:
        """Set the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def _named(self, message: Message) -> str:
        """Set a message's id, and return it."""
        self._pushed += 1
        set_message_id(message, identifier := str(self._pushed))
        return identifier


def expires(message: Message) -> float:
    """Unix time in seconds after which a SuperLink would drop a message."""
    return message.metadata.created_at + message.metadata.ttl


@contextlib.contextmanager
def flower_identity() -> Iterator[None]:
    """Set the identity of Flower's messages to that of a run's server, inside the block."""
    with identity(1, RUN_ID, SERVER_NODE_ID):
        yield
