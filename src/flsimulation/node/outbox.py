"""Messages that are sent over Flower's grid: their ids, and those that nobody will answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Set

from flwr.app import Message, Metadata, RecordDict
from flwr.serverapp import Grid

from flsimulation.errors import ClientError
from flsimulation.internals.flower_messages import identifiers_of, set_message_id
from flsimulation.messages.codec import failed_reply
from flsimulation.messages.packing import is_packed, unpack

_EXPIRED = 60.0  # seconds after a message's time to live, when its deadline, if it has one, is over


class Outbox:
    """The messages that are on their way.

    Parameters
    ----------
    grid : Grid
        Flower's own.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._sent: dict[str, Metadata] = {}
        self._rejected: dict[str, Message] = {}  # the failure of each
        self._rejections = 0

    @property
    def identifiers(self) -> Set[str]:
        """Of the messages."""
        return self._sent.keys()

    @property
    def nodes(self) -> set[int]:
        """That the messages went to."""
        return {told.dst_node_id for told in self._sent.values()}

    def node_of(self, identifier: str) -> int | None:
        """The node that a message went to."""
        told = self._sent.get(identifier)
        return told.dst_node_id if told is not None else None

    def push(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; returns their ids, one of our own for one that was rejected."""
        # One by one: Flower shows a node its message before the message's parts are there, and many
        # nodes that ask for parts again and again keep the SuperLink from taking them.
        sent = [(self._push(message), message.metadata) for message in messages]
        self._sent |= dict(sent)
        return [identifier for identifier, _ in sent]

    def keep(self, wanted: Set[str]) -> None:
        """Forget all other messages: nobody waits for their answers any more."""
        self._sent = {i: told for i, told in self._sent.items() if i in wanted}
        self._rejected = {i: answer for i, answer in self._rejected.items() if i in wanted}

    def _push(self, message: Message) -> str:
        (identifier,) = identifiers_of(self._grid.push_messages([message]), 1)
        if identifier is None:
            self._rejections += 1
            identifier = f"rejected-{self._rejections}"
            why = "the SuperLink rejected its message; the SuperLink's log says why"
            self._rejected[identifier] = _lost(identifier, message.metadata, why)
        return identifier

    def pull(self, wanted: Set[str]) -> list[Message]:
        """Answers that are there, and failures in place of those that will not come."""
        rejected = [self._rejected.pop(i) for i in sorted(wanted & self._rejected.keys())]
        asked = sorted(wanted - {replied_to(answer) for answer in rejected})
        answers = [unpacked(answer) for answer in self._grid.pull_messages(asked)] if asked else []
        waiting = set(asked) - {replied_to(answer) for answer in answers}
        return [*rejected, *answers, *self._expired(waiting)]

    def _expired(self, waiting: Set[str]) -> Iterator[Message]:
        """Failures of messages that are too old for an answer: the SuperLink of 1.43 tells none."""
        latest = time.time() - _EXPIRED
        for identifier in sorted(waiting & self._sent.keys()):
            told = self._sent[identifier]
            if told.created_at + told.ttl < latest:
                why = f"no answer came within the {told.ttl:g} s that its message lives"
                yield _lost(identifier, told, why)


def replied_to(answer: Message) -> str:
    """The id of the message that this one answers."""
    return answer.metadata.reply_to_message_id


def _lost(identifier: str, told: Metadata, why: str) -> Message:
    """The failure of a message, as an answer to it."""
    message = Message(RecordDict(), told.dst_node_id, told.message_type, group_id=told.group_id)
    set_message_id(message, identifier)
    return failed_reply(message, ClientError("lost", why))


def unpacked(answer: Message) -> Message:
    """The answer, with its content as it was before it was packed."""
    if answer.has_content() and is_packed(answer.content):
        answer.content = unpack(answer.content)
    return answer
