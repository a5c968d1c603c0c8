"""What the server keeps and says of one secure aggregation, and how it reads the clients' replies."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flwr.app import ArrayRecord

from flsimulation.errors import InputError, RoundError
from flsimulation.experiment import Experiment
from flsimulation.messages.received import rejected
from flsimulation.privacy.graph import Plan, plan_for
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

    def place_of(self, partition: int, of: str = "") -> dict[str, Any]:
        """What a client is told of its place in the graph.

        Parameters
        ----------
        partition : int
            The client.
        of : str
            `NEXT` if this is the next round's.
        """
        near = self.graph[partition]
        return {
            f"{of}made": self.clients[partition].made,
            f"{of}clients": self.plan.clients,
            f"{of}neighbours": list(near),
            f"{of}keys": [self.clients[other].keys.joined() for other in near],
        }

    def take_shares(self, partition: int, content: Mapping[str, str], of: str = "") -> None:
        """Keep what a client sealed for its neighbours. Raises ``ValueError`` if one is missing."""
        found = {other: bytes_in(content, f"{of}{other}") for other in self.graph[partition]}
        for other, sealed in found.items():
            self.sealed.setdefault(other, {})[partition] = sealed


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
        try:
            read(partition, content_of(replies, partition))
        except ValueError as error:
            del replies.metrics[partition]
            replies.failures[partition] = rejected(f"its {replies.phase} cannot be read: {error}")


def content_of(replies: Replies, partition: int) -> dict[str, Any]:
    """What a client sent as a text, by name. Raises ``ValueError`` if it cannot be read."""
    text = replies.texts.get(partition, "")
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text):,} characters")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    return content


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


def hidden_by(experiment: Experiment) -> str:
    """What is hidden from the server, and under which assumptions, in a line. Raises `InputError`."""
    spec = experiment.privacy
    try:
        plan = plan_for(experiment.cohort_size, spec.assumed_dropped, spec.assumed_corrupt)
    except ValueError as error:
        raise InputError(
            f"privacy.assumed-dropped is {spec.assumed_dropped:g} and privacy.assumed-corrupt "
            f"{spec.assumed_corrupt:g}, but {error}; lower them, or train more clients in a round"
        ) from None
    network = not experiment.runtime.is_simulation
    secrets = (
        "the system's entropy"
        if network
        else "the run's seed, which hides nothing from who knows it"
    )
    return (
        f"secure aggregation: the server learns sums of at least {plan.least} of {plan.clients} updates, and no single "
        f"one; each client shares masks with {plan.neighbours} others; keys follow {secrets}"
    )


def cut_by(trained: Replies, largest: float) -> str:
    """A line on the first client whose numbers were beyond the range; the mean is then another."""
    for partition in sorted(trained.models):
        with suppress(ValueError, TypeError):
            if (count := int(content_of(trained, partition).get("cut", 0))) > 0:
                return (
                    f"secure aggregation: {count:,} numbers of client {partition} changed by more than "
                    f"privacy.largest-change {largest:g} in round {trained.round} and were cut to it; "
                    f"raise it, or lower the learning rate"
                )
    return ""


def failed(round: int, why: str, replies: Replies) -> RoundError:
    """The error of a round without a sum."""
    failures = f"; {replies.named_failures()}" if replies.failures else ""
    return RoundError(f"round {round}: secure aggregation: {why}{failures}")
