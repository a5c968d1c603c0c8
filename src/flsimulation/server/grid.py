"""The interface of grids: Flower's, with a partition for each node."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from flsimulation.messages.batch import Batch


class PartitionedGrid(Grid):
    """A Flower grid that knows the partition of every node.

    A message may have several replies, where `replies_in_parts`.
    """

    @property
    @abstractmethod
    def partitions(self) -> Mapping[int, int]:
        """Partition of every connected node, by node id, ascending by partition."""

    @property
    @abstractmethod
    def costs_time(self) -> bool:
        """Whether messages are slow, so that two phases should share one."""

    @property
    def averages(self) -> bool:
        """Whether batches may request the mean of their clients' models instead of each one's."""
        return False

    @property
    def replies_in_parts(self) -> bool:
        """Whether a message may have several replies, each with some of the outcomes."""
        return False

    @abstractmethod
    def divided(self, batch: Batch) -> Iterator[tuple[int | None, Batch]]:
        """Divide a batch into messages; yields the node and the batch of each.

        The node is None if no node holds the tasks' partition.
        """

    @abstractmethod
    def look(self) -> None:
        """Update the connected nodes."""

    @abstractmethod
    def gather(self, seconds: float) -> int:
        """Wait for disconnected clients, once per absence; returns how many are connected."""

    @abstractmethod
    def wait(self, least: int, seconds: float) -> bool:
        """Wait until at least ``least`` clients are connected; False if that takes too long."""

    def why_lost(self, partition: int, node: int) -> str | None:  # noqa: ARG002 - for networks
        """Why a disconnected node will not reply; None if it still may."""
        return "it disconnected before it replied"

    def examples_of(self, partition: int) -> int | None:  # noqa: ARG002 - for networks
        """Examples that a client declared when it joined late; None for all others."""
        return None

    def node_of(self, partition: int) -> int | None:
        """The node that holds a partition; None if there is none."""
        return next((node for node, held in self.partitions.items() if held == partition), None)

    def get_node_ids(self) -> Iterable[int]:
        """Nodes by partition, so that a seed samples the same clients in every runtime."""
        return list(self.partitions)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Not available, since messages may have several replies: use the exchange."""
        raise NotImplementedError("post tasks to the exchange instead")

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
