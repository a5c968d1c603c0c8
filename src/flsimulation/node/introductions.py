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

_LARGEST = 2**20  # bytes of a reply with a name
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
        self._queried: dict[str, int] = {}
        self._silent: dict[int, float] = {}  # nodes without a reported name, and since when
        self._trouble = ""

    @property
    def nodes(self) -> set[int]:
        """Nodes that were asked and have not replied."""
        return set(self._queried.values())

    def ask(self, nodes: Sequence[int]) -> None:
        """Send a query to each of these nodes."""
        if not nodes:
            return
        queries = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        ids = identifiers_of(self._grid.push_messages(queries), len(nodes))
        self._queried |= {identifier: n for identifier, n in zip(ids, nodes, strict=True) if identifier}  # fmt: skip
        self._silent = dict.fromkeys(nodes, self._clock.monotonic()) | self._silent

    def replies(self, online: set[int]) -> dict[int, Identity]:
        """The identities that have arrived, by node; nodes that are not online are forgotten."""
        self._queried = {m: n for m, n in self._queried.items() if n in online}
        met = {}
        for query, found in _introductions(self._grid, list(self._queried)):
            node = self._queried.pop(query, None)
            if node is None:
                continue
            if isinstance(found, str):
                self._trouble = f"; a client replied: {found}"
                continue
            self._silent.pop(node, None)
            if (identity := identified(found, node, self._names)) is not None:
                met[node] = identity
                if identity.trouble:
                    self._trouble = f"; client {identity.name}: {identity.trouble}"
        self._silent = {n: since for n, since in self._silent.items() if n in online}
        return met

    @property
    def trouble(self) -> str:
        """What is known about missing clients, as the end of a sentence."""
        now = self._clock.monotonic()
        silent = [node for node, since in self._silent.items() if now - since > _SILENT]
        if self._trouble or not silent:
            return self._trouble
        names = ", ".join(sorted(map(self._name_of_node, silent)))
        them = "them" if len(silent) > 1 else "it"
        return f"; connected, but not responding: {names}; restart {them} (docker restart)"


def _introductions(grid: Grid, queried: Sequence[str]) -> Iterator[tuple[str, Identity | str]]:
    """The queries that were replied to, each with the client's identity, or with why there is none."""
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
