"""Messages that are sent over Flower's grid: their ids, and those that will have no reply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from flsimulation.clock import SYSTEM, Clock
from flsimulation.errors import ClientError, describe_error, one_line
from flsimulation.internals.flower_messages import (
    DELETED,
    OF_SUPERLINK,
    identifiers_of,
    set_message_id,
)
from flsimulation.internals.flower_replies import Refused, pull_replies
from flsimulation.messages.arrays import size_of
from flsimulation.messages.codec import failed_reply
from flsimulation.messages.packing import is_packed, pack, unpack
from flsimulation.messages.received import rejected

_MORE_BYTES = 320 * 2**20  # that a reply may have besides a model: predictions of metric objects
RESTARTED = "it was restarted before it replied"
"""Why a client has no reply, if it does not say more."""
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
        self._largest = 0  # bytes of a message

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

    def nodes_of(self, replies: Iterable[Message]) -> set[int | None]:
        """Nodes that the messages went to, by the replies."""
        return {self.node_of(replied_to(reply)) for reply in replies}

    def _was_deleted(self, unavailable: Message) -> bool:
        """Whether a message was deleted within its time to live: its node's process has ended."""
        sent = self._sent[replied_to(unavailable)]
        lives = self._clock.time() < sent.created_at + sent.ttl
        return unavailable.error.code == DELETED and lives

    def push(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; returns their ids, also for those that were rejected."""
        # One by one: Flower offers a node its message before the message's parts are stored, and many
        # nodes that request parts repeatedly keep the SuperLink from storing them.
        sent = []
        for message in messages:
            self._largest = max(self._largest, _bytes_of(message.content))
            sent.append((self._push(message), message.metadata))
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

    def explained(self, unavailable: Message, trouble: str) -> Message:
        """Flower's own reply, with what the restarted client says that ended its message."""
        identifier = replied_to(unavailable)
        why = trouble or (RESTARTED if self._was_deleted(unavailable) else "")
        return _lost(identifier, self._sent[identifier], why) if why else unavailable

    def pull(self, wanted: Set[str]) -> list[Message]:
        """Replies that have arrived, and failures in place of those that will not arrive."""
        rejected = [self._rejected.pop(i) for i in sorted(wanted & self._rejected.keys())]
        pulled = sorted(wanted - {replied_to(reply) for reply in rejected})
        found = pull_replies(self._grid, pulled, _MORE_BYTES + 2 * self._largest) if pulled else ()
        replies = [self._read(reply) for reply in found]
        waiting = set(pulled) - {replied_to(reply) for reply in replies}
        return [*rejected, *replies, *self._expired(waiting)]

    def _read(self, reply: Message | Refused) -> Message:
        """A reply as it was before it was packed; a failure if it is none."""
        if isinstance(reply, Refused):
            return _failed(reply.reply_to, self._sent[reply.reply_to], rejected(reply.why))
        try:
            return unpacked(reply)
        except Exception as error:  # whatever a decoder raises for what was not packed
            why = rejected(f"its reply cannot be read: {one_line(describe_error(error))}")
            return _failed(replied_to(reply), self._sent[replied_to(reply)], why)

    def _expired(self, waiting: Set[str]) -> Iterator[Message]:
        """Failures of messages that are too old for a reply: the SuperLink of 1.43 reports none."""
        latest = self._clock.time() - _EXPIRED
        for identifier in sorted(waiting & self._sent.keys()):
            metadata = self._sent[identifier]
            if metadata.created_at + metadata.ttl < latest:
                why = f"no reply arrived within its message's time to live, {metadata.ttl:g} s"
                yield _lost(identifier, metadata, why)


def _bytes_of(content: RecordDict) -> int:
    return sum(size_of(record) for record in content.values())


def is_flowers_own(reply: Message) -> bool:
    """Whether the reply is Flower's own, because the node or the message does not exist any more."""
    return reply.has_error() and reply.error.code in OF_SUPERLINK


def replied_to(reply: Message) -> str:
    """The id of the message that this is the reply to."""
    return reply.metadata.reply_to_message_id


def _lost(identifier: str, metadata: Metadata, why: str) -> Message:
    """The failure of a message that has no reply, as a reply to it."""
    return _failed(identifier, metadata, ClientError("lost", why))


def _failed(identifier: str, metadata: Metadata, error: ClientError) -> Message:
    """The failure of a message, as a reply to it."""
    node, message_type = metadata.dst_node_id, metadata.message_type
    message = Message(RecordDict(), node, message_type, group_id=metadata.group_id)
    set_message_id(message, identifier)
    return failed_reply(message, error)


def packed(message: Message, models: dict[int, ConfigRecord | ArrayRecord]) -> Message:
    """A copy of the message with its content packed; ``models`` keeps those that several share."""
    content, sent = pack(message.content, models), message.metadata
    return Message(
        content, sent.dst_node_id, sent.message_type, ttl=sent.ttl, group_id=sent.group_id
    )


def unpacked(reply: Message) -> Message:
    """The reply, with its content as it was before it was packed."""
    if reply.has_content() and is_packed(reply.content):
        reply.content = unpack(reply.content)
    return reply
