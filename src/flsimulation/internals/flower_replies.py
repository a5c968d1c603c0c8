"""Pulls replies from a SuperLink as Flower's grid does, but reads them only if they are sound.

A SuperLink of 1.42 checks which node sends a reply, and to which message; it neither bounds the reply
nor compares the message with what was stored in its place. ``HttpGrid.pull_messages`` reads all of it,
and believes the id in the content: a node could fill the server's memory, end the run by a message that
cannot be decoded, or reply in place of another node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

__all__ = ["HttpGrid", "Refused", "pull_replies"]

_MOST_PARTS = 100_000  # of a reply; Flower's parts have up to 5 MiB
_MOST_SECONDS = 60.0  # that a reply may take to be read: its client sends its parts first


class Refused(NamedTuple):
    """A reply that was not read."""

    reply_to: str
    """Id of the message that it replies to."""
    why: str
    """What is wrong with it."""


class _TooLargeError(Exception):
    """A reply has more bytes or parts than permitted."""


def pull_replies(
    grid: Grid, identifiers: Sequence[str], largest: int
) -> Iterator[Message | Refused]:
    """The replies that have arrived.

    Parameters
    ----------
    grid : Grid
        Flower's own; any other is called as it is.
    identifiers : sequence of str
        Ids of the messages to which replies are wanted.
    largest : int
        Most bytes of a reply.
    """
    if not isinstance(grid, HttpGrid):
        yield from grid.pull_messages(identifiers)
        return
    client = grid._runtime_client
    answer = client.PullMessages(PullAppMessagesRequest(message_ids=identifiers))
    for stored, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
        yield _reply(grid, client, stored.metadata, tree, largest)


def _reply(grid: HttpGrid, client: Any, stored: Any, tree: Any, largest: int) -> Message | Refused:
    """A reply whose metadata the SuperLink has checked and stored."""
    run, identifier, replied = grid.run.run_id, stored.message_id, stored.reply_to_message_id
    pull = make_pull_object_fn_protobuf(client.PullObject, grid.node, run)
    try:
        contents = _contents(tree, pull, largest)
    except ObjectPullError as error:
        return _unavailable(grid, run, replied, error)
    except _TooLargeError as error:
        return Refused(replied, str(error))
    client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=grid.node, run_id=run, message_object_id=identifier)
    )
    try:
        found = inflate_object_from_contents(identifier, contents)
    except Exception as error:  # whatever a decoder raises for what is no message
        return Refused(replied, f"its reply cannot be read: {type(error).__name__}")
    if not isinstance(found, Message):
        return Refused(replied, f"its reply is no message, but {type(found).__name__}")
    if found.metadata.reply_to_message_id != replied:
        return Refused(replied, "its reply names another client's message")
    vars(found.metadata)["_message_id"] = identifier
    return found


def _contents(tree: Any, pull: Callable[[str], bytes], largest: int) -> dict[str, bytes]:
    """The parts of a reply, while they are not too large. Raises `_TooLargeError`."""
    parts = list(itertools.islice(_identifiers(tree), _MOST_PARTS + 1))
    if len(parts) > _MOST_PARTS:
        raise _TooLargeError(f"its reply has more than {_MOST_PARTS:,} parts")
    sizes: list[int] = []  # of the parts so far; threads may each leave one out

    def bounded(identifier: str) -> bytes:
        content = pull(identifier)
        sizes.append(len(content) + (sizes[-1] if sizes else 0))
        if sizes[-1] > largest:
            raise _TooLargeError(f"its reply is larger than {largest:,} bytes")
        return content

    return pull_objects(parts, bounded, max_time=_MOST_SECONDS)


def _identifiers(tree: Any) -> Iterable[str]:
    return (part.object_id for part in iterate_object_tree(tree))


def _unavailable(grid: HttpGrid, run: int, replied: str, error: Exception) -> Message:
    """What Flower's grid returns for a reply whose parts are missing."""
    node = grid.node.node_id
    metadata = Metadata(
        run_id=run,
        message_id="",
        src_node_id=node,
        dst_node_id=node,
        message_type=SYSTEM_MESSAGE_TYPE,
        group_id="",
        ttl=0,
        reply_to_message_id=replied,
        created_at=0.0,
    )
    reason = f"the parts of its reply are missing: {error}"
    return make_message(metadata=metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))
