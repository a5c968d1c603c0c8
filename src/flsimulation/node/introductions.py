"""Asks nodes for their client's name, and reads the replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flsimulation.clock import Clock
from flsimulation.errors import one_line
from flsimulation.internals.flower_messages import identifiers_of
from flsimulation.internals.flower_replies import Refused, pull_replies
from flsimulation.messages.content import identity_of
from flsimulation.node.assignment import Identity
from flsimulation.node.identified import Names, identified
from flsimulation.node.outbox import is_flowers_own

_LARGEST = 2**20  # bytes of a reply with a name
_KEPT_SECONDS = 60.0  # that a query is open whose node is not listed: busy ones come and go
_SILENT = 10.0  # seconds after which a node that has not reported its name counts as silent


class Introductions:
    """The queries for names that are on their way.

    Parameters
    ----------
    grid : Grid
        Flower's own grid.
    names : callable or None
        As in `identified`.
    name_of_node : callable
        Returns the name of the client at a node as far as it is known.
    clock : Clock
        The clock to use.
    """

    def __init__(
        self, grid: Grid, names: Names | None, name_of_node: Callable[[int], str], clock: Clock
    ) -> None:
        self._grid, self._names, self._clock = grid, names, clock
        self._name_of_node = name_of_node
        self._queried: dict[str, tuple[int, float]] = {}  # node that was asked, and when
        self._silent: dict[int, float] = {}  # nodes without a reported name, and since when
        self._online: set[int] = set()
        self._trouble = ""

    @property
    def nodes(self) -> set[int]:
        """Nodes that were asked and have not replied."""
        return {node for node, _ in self._queried.values()}

    def ask(self, nodes: Sequence[int]) -> None:
        """Send a query to each of these nodes."""
        if not nodes:
            return
        queries = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        ids = identifiers_of(self._grid.push_messages(queries), len(nodes))
        now = self._clock.monotonic()
        self._queried |= {i: (n, now) for i, n in zip(ids, nodes, strict=True) if i}
        self._silent = dict.fromkeys(nodes, now) | self._silent

    def replies(self, online: set[int]) -> dict[int, Identity]:
        """The identities that have arrived, by node; some nodes may not be listed at the moment."""
        since = self._clock.monotonic() - _KEPT_SECONDS
        self._queried = {
            query: (node, asked)
            for query, (node, asked) in self._queried.items()
            if node in online or asked > since
        }
        met = {}
        for query, found in _introductions(self._grid, list(self._queried)):
            node, _ = self._queried.pop(query, (None, None))
            if node is None or found is None:
                continue
            if isinstance(found, str):
                self._trouble = f"; a client replied: {found}"
                continue
            self._silent.pop(node, None)
            if (identity := identified(found, node, self._names)) is not None:
                met[node] = identity
                if identity.trouble:
                    self._trouble = f"; client {identity.name}: {identity.trouble}"
        there = online | self.nodes
        self._silent = {n: since for n, since in self._silent.items() if n in there}
        self._online = online
        return met

    @property
    def trouble(self) -> str:
        """What is known about missing clients, as the end of a sentence."""
        if self._trouble or not (silent := self.silent):
            return self._trouble
        them = "them" if len(silent) > 1 else "it"
        names = ", ".join(silent)
        return f"; connected, but not responding: {names}; restart {them} (docker restart)"

    @property
    def silent(self) -> list[str]:
        """Names of connected clients that do not reply."""
        now = self._clock.monotonic()
        nodes = {node for node, since in self._silent.items() if now - since > _SILENT}
        return sorted(map(self._name_of_node, nodes & self._online))


def _introductions(
    grid: Grid, queried: Sequence[str]
) -> Iterator[tuple[str, Identity | str | None]]:
    """The queries that were replied to, each with the client's identity, or with why there is none.

    None if the node is gone, of which the SuperLink informs in its place.
    """
    for reply in pull_replies(grid, queried, _LARGEST) if queried else ():
        if isinstance(reply, Refused):
            yield reply.reply_to, reply.why
        else:
            identity = None if is_flowers_own(reply) else _identity(reply)
            yield reply.metadata.reply_to_message_id, identity


def _identity(reply: Message) -> Identity | str:
    if reply.has_error():
        return one_line(reply.error.reason or reply.error.code)
    try:
        return Identity(*identity_of(reply))
    except ValueError as error:
        return str(error)
