"""The replies of nodes to the query for their client's name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from flsimulation.errors import one_line
from flsimulation.internals.flower_replies import Refused, pull_replies
from flsimulation.messages.content import identity_of
from flsimulation.node.assignment import Identity

_LARGEST = 2**20  # bytes of a reply with a name


def introductions(grid: Grid, queried: Sequence[str]) -> Iterator[tuple[str, Identity | str]]:
    """The queries that were replied to, each with the client's identity, or with why there is none.

    Parameters
    ----------
    grid : Grid
        Flower's own grid.
    queried : sequence of str
        Ids of the queries.
    """
    for reply in pull_replies(grid, queried, _LARGEST) if queried else ():
        if isinstance(reply, Refused):
            yield reply.reply_to, reply.why
        else:
            yield reply.metadata.reply_to_message_id, _identity(reply)


def _identity(reply: Message) -> Identity | str:
    if reply.has_error():
        return one_line(reply.error.reason or reply.error.code)
    try:
        return Identity(*identity_of(reply))
    except ValueError as error:
        return str(error)
