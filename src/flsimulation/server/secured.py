"""What the server keeps of one secure aggregation, and how it reads the clients' replies."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord

from flsimulation.messages.received import rejected
from flsimulation.privacy.graph import Plan
from flsimulation.privacy.masks import PublicKeys
from flsimulation.server.replies import Replies

_LONGEST = 1_000_000  # characters of a reply


class Client(NamedTuple):
    """What is known of a client before it trains."""

    made: int
    """Round in which its keys were made."""
    keys: PublicKeys
    examples: int
    """On which it trains."""


@dataclass
class Secured:
    """A secure aggregation in progress."""

    model: ArrayRecord
    """The global model before it."""
    plan: Plan
    clients: Mapping[int, Client]
    graph: Mapping[int, Sequence[int]]
    """Each client's neighbours, ascending."""
    sealed: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """Sealed shares: by the client that they are for, and the one that they are from."""
    senders: frozenset[int] = frozenset()
    """Clients that sealed shares."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Clients that dropped out, by phase."""

    @property
    def largest(self) -> int:
        """Most examples of a client; weights are relative to it."""
        return max(client.examples for client in self.clients.values())

    def near(self, partition: int) -> list[int]:
        """The neighbours of a client that sealed shares."""
        return [other for other in self.graph[partition] if other in self.senders]

    def place_of(self, partition: int, **more: Any) -> ConfigRecord:
        """What a client is told of its place in the graph, and more for a phase."""
        near = self.graph[partition]
        place: dict[str, Any] = {
            "made": self.clients[partition].made,
            "clients": self.plan.clients,
            "neighbours": list(near),
            "keys": [self.clients[other].keys.joined() for other in near],
        }
        return ConfigRecord({**place, **more})


def take_in(replies: Replies, read: Callable[[int, Mapping[str, str]], None]) -> None:
    """Read what each client sent; those whose reply is of no use become failures.

    Parameters
    ----------
    replies : Replies
        Of a phase whose replies are texts.
    read : callable
        Called with a client's partition and the texts by name. It may raise ``ValueError``.
    """
    for partition in sorted(replies.metrics):
        text = replies.texts.get(partition, "")
        try:
            if len(text) > _LONGEST:
                raise ValueError(f"it has {len(text):,} characters")
            content = json.loads(text)
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            read(partition, content)
        except ValueError as error:
            del replies.metrics[partition]
            replies.failures[partition] = rejected(f"its {replies.phase} cannot be read: {error}")


def bytes_in(content: Mapping[str, str], name: object, size: int | None = None) -> bytes:
    """The bytes under a name in what a client sent. Raises ``ValueError`` if there are none."""
    text = content.get(str(name))
    if not isinstance(text, str):
        raise ValueError(f"it has no {name!s}")
    found = base64.b64decode(text, validate=True)
    if size is not None and len(found) != size:
        raise ValueError(f"{name!s} has {len(found)} bytes, not {size}")
    return found


def add_traffic(replies: Replies, others: Sequence[Replies]) -> None:
    """Count the payload of other phases with that of the training."""
    replies.bytes_down += sum(other.bytes_down for other in others)
    replies.bytes_up += sum(other.bytes_up for other in others)
