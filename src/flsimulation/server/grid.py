"""What carries messages: Flower's grid, with a partition for each node."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from flsimulation.messages.batch import Batch


class PartitionedGrid(Grid):
    """A Flower grid that knows the partition of every node.

    Several messages may answer one, each with some of the outcomes of its tasks.
    """

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
    def divided(self, batch: Batch) -> Iterator[tuple[int | None, Batch]]:
        """The batch by messages, each with the node that it goes to.

        None where nobody holds the tasks' partition.
        """

    @abstractmethod
    def look(self) -> None:
        """See who came and who went since."""

    @abstractmethod
    def gather(self, seconds: float) -> int:
        """Wait for clients that went away, once for each absence; returns how many are there."""

    @abstractmethod
    def wait(self, least: int, seconds: float) -> bool:
        """Wait until at least so many clients are there; False if they do not come in time."""

    def why_lost(self, partition: int, node: int) -> str | None:  # noqa: ARG002 - of networks
        """Why no answer will come from a node that went away; None if one still may."""
        return "it went away before it answered"

    def node_of(self, partition: int) -> int | None:
        """The node that holds a partition now, or None."""
        return next((node for node, held in self.partitions.items() if held == partition), None)

    def get_node_ids(self) -> Iterable[int]:
        """Nodes by partition, so that a seed samples the same clients in every runtime."""
        return list(self.partitions)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Not for grids whose messages may have several answers: the exchange pushes and pulls."""
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
