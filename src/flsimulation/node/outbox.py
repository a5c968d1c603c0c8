"""Messages that are sent over Flower's grid: their ids, and those that will have no reply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

from flwr.app import Message, Metadata, RecordDict
from flwr.serverapp import Grid

from flsimulation.clock import SYSTEM, Clock
from flsimulation.errors import ClientError
from flsimulation.internals.flower_messages import identifiers_of, set_message_id
from flsimulation.messages.codec import failed_reply
from flsimulation.messages.packing import is_packed, unpack

_EXPIRED = 60.0  # seconds after a message's time to live; its deadline, if any, is then over


class Outbox:
    """The messages that are on their way.

    Parameters
    ----------
    grid : Grid
        Flower's own grid.
    clock : Clock
        The clock to use.
    """

    def __init__(self, grid: Grid, clock: Clock = SYSTEM) -> None:
        self._grid, self._clock = grid, clock
        self._sent: dict[str, Metadata] = {}
        self._rejected: dict[str, Message] = {}  # the failure of each
        self._rejections = 0

    @property
    def identifiers(self) -> Set[str]:
        """Ids of the messages."""
        return self._sent.keys()

    @property
    def nodes(self) -> set[int]:
        """Nodes that the messages went to."""
        return {metadata.dst_node_id for metadata in self._sent.values()}

    def node_of(self, identifier: str) -> int | None:
        """The node that a message went to."""
        metadata = self._sent.get(identifier)
        return metadata.dst_node_id if metadata is not None else None

    def push(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; returns their ids, also for those that were rejected."""
        # One by one: Flower offers a node its message before the message's parts are stored, and many
        # nodes that request parts repeatedly keep the SuperLink from storing them.
        sent = [(self._push(message), message.metadata) for message in messages]
        self._sent |= dict(sent)
        return [identifier for identifier, _ in sent]

    def keep(self, wanted: Set[str]) -> None:
        """Forget all other messages, whose replies are not needed any more."""
        self._sent = {i: metadata for i, metadata in self._sent.items() if i in wanted}
        self._rejected = {i: reply for i, reply in self._rejected.items() if i in wanted}

    def _push(self, message: Message) -> str:
        (identifier,) = identifiers_of(self._grid.push_messages([message]), 1)
        if identifier is None:
            self._rejections += 1
            identifier = f"rejected-{self._rejections}"
            why = "the SuperLink rejected its message; the SuperLink's log says why"
            self._rejected[identifier] = _lost(identifier, message.metadata, why)
        return identifier

    def pull(self, wanted: Set[str]) -> list[Message]:
        """Replies that have arrived, and failures in place of those that will not arrive."""
        rejected = [self._rejected.pop(i) for i in sorted(wanted & self._rejected.keys())]
        pulled = sorted(wanted - {replied_to(reply) for reply in rejected})
        replies = [unpacked(reply) for reply in self._grid.pull_messages(pulled)] if pulled else []
        waiting = set(pulled) - {replied_to(reply) for reply in replies}
        return [*rejected, *replies, *self._expired(waiting)]

    def _expired(self, waiting: Set[str]) -> Iterator[Message]:
        """Failures of messages that are too old for a reply: the SuperLink of 1.43 reports none."""
        latest = self._clock.time() - _EXPIRED
        for identifier in sorted(waiting & self._sent.keys()):
            metadata = self._sent[identifier]
            if metadata.created_at + metadata.ttl < latest:
                why = f"no reply arrived within its message's time to live, {metadata.ttl:g} s"
                yield _lost(identifier, metadata, why)


def replied_to(reply: Message) -> str:
    """The id of the message that this is the reply to."""
    return reply.metadata.reply_to_message_id


def _lost(identifier: str, metadata: Metadata, why: str) -> Message:
    """The failure of a message, as a reply to it."""
    node, message_type = metadata.dst_node_id, metadata.message_type
    message = Message(RecordDict(), node, message_type, group_id=metadata.group_id)
    set_message_id(message, identifier)
    return failed_reply(message, ClientError("lost", why))


def unpacked(reply: Message) -> Message:
    """The reply, with its content as it was before it was packed."""
    if reply.has_content() and is_packed(reply.content):
        reply.content = unpack(reply.content)
    return reply
