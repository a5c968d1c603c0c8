"""Which node holds which partition, where the runtime does not say: on a network of clients.

A client that its configuration gives a partition keeps it. The others get the lowest free one, and
the server remembers them by name, so that a client that comes back gets its own again and two
never share one. Clients beyond the experiment's number are spares: they take over what gets free.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flsimulation.errors import RunError
from flsimulation.host.files import write_atomic


@dataclass(frozen=True)
class Identity:
    """What a node says of itself."""

    name: str
    """Stays the same when the client comes back, unlike Flower's node id."""
    partition: int | None
    """The partition that its configuration gives it."""
    trouble: str = ""
    """What went wrong at it since it last said who it is, as the end of a sentence."""


class PartitionTable:
    """Partitions of the nodes that are there.

    Parameters
    ----------
    clients : int
        Number of partitions.
    memory : Path, optional
        File that keeps each name's partition from run to run.
    """

    def __init__(self, clients: int, memory: Path | None = None) -> None:
        self._clients = clients
        self._memory = memory
        self._remembered = _read(memory)
        self._nodes_memory = memory and memory.with_name(f"{memory.stem}-nodes.json")
        self._names = {
            int(node): str(name) for node, name in _read_names(self._nodes_memory).items()
        }
        self._identities: dict[int, Identity] = {}
        self.partitions: dict[int, int] = {}
        """Partition of every node that has one, by partition."""

    def identity_of(self, node: int) -> Identity | None:
        """What a node that is there said of itself."""
        return self._identities.get(node)

    def name_of(self, partition: int) -> str | None:
        """Name of the client that holds a partition, or held it last."""
        names = [name for name, held in self._remembered.items() if held == partition]
        return names[-1] if names else None

    def name_of_node(self, node: int) -> str:
        """Name of the client at a node, as far as it said so in this run or an earlier one."""
        return self._names.get(node, f"a client that never said its name (node {node})")

    @property
    def nodes(self) -> set[int]:
        """Every node that said who it is, spares included."""
        return set(self._identities)

    def update(
        self, online: Iterable[int], met: Mapping[int, Identity], *, strict: bool = True
    ) -> None:
        """Forget nodes that are gone, take in those that were met, and fill what is free.

        Parameters
        ----------
        online : iterable of int
            Nodes that are there.
        met : mapping of int to Identity
            Nodes that said who they are.
        strict : bool
            Whether a wrong configuration is an error. In the middle of a run it is none: such a
            client is left out, and the last that is configured for a partition takes the place
            of the one before.

        Raises
        ------
        RunError
            If two clients are configured for one partition, or one for a partition that there
            is not.
        """
        there = set(online)
        self._identities = {n: i for n, i in self._identities.items() if n in there}
        for node, identity in met.items():
            if strict:
                self._check(identity)
            elif identity.partition is not None and not 0 <= identity.partition < self._clients:
                continue
            # A name that comes a second time is a client that was started anew: its old node is
            # dead, although a SuperLink takes a minute to notice.
            self._identities = {
                n: i for n, i in self._identities.items() if not _is_same(i, identity)
            }
            self._identities[node] = identity
        if met:
            self._remember_names(there)
        held = {n: p for n, p in self.partitions.items() if n in self._identities}
        self.partitions = held
        self._fill()
        self.partitions = dict(sorted(self.partitions.items(), key=lambda item: item[1]))

    def _check(self, identity: Identity) -> None:
        wanted = identity.partition
        if wanted is None:
            return
        if not 0 <= wanted < self._clients:
            raise RunError(
                f"client {identity.name} is configured for partition {wanted}, but the experiment "
                f"has partitions 0 to {self._clients - 1}; change its partition or data.clients"
            )
        for other in self._identities.values():
            if other.partition == wanted and other.name != identity.name:
                raise RunError(
                    f"clients {other.name} and {identity.name} are both configured for partition "
                    f"{wanted}; give each its own"
                )

    def _fill(self) -> None:
        for node, identity in self._identities.items():  # first those that may have no other
            if identity.partition is not None and node not in self.partitions:
                self._evict(identity.partition)
                self.partitions[node] = identity.partition
        without = [n for n in self._identities if n not in self.partitions]
        without.sort(key=lambda node: self._identities[node].name)
        for own in (True, False):  # then those that come back, and last those that are new
            for node in without:
                if node not in self.partitions:
                    self._place(node, own=own)
        self._remember()

    def _place(self, node: int, *, own: bool) -> None:
        free = [p for p in range(self._clients) if p not in self.partitions.values()]
        name = self._identities[node].name
        if own:
            free = [p for p in free if self._remembered.get(name) == p]
        else:  # what nobody is expected back to, before what somebody is
            free.sort(key=lambda p: (p in self._remembered.values(), p))
        if free:
            self.partitions[node] = free[0]

    def _evict(self, partition: int) -> None:
        self.partitions = {n: p for n, p in self.partitions.items() if p != partition}

    def _remember_names(self, there: set[int]) -> None:
        """Keep the names of the nodes that are there: one may be silent in the next run."""
        names = {n: name for n, name in self._names.items() if n in there}
        names |= {n: identity.name for n, identity in self._identities.items()}
        is_new, self._names = names != self._names, names
        if is_new and self._nodes_memory is not None:
            self._nodes_memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._nodes_memory, json.dumps(self._names, indent=2) + "\n")

    def _remember(self) -> None:
        names = {self._identities[n].name: p for n, p in self.partitions.items()}
        old = {n: p for n, p in self._remembered.items() if p not in names.values()}
        now = old | names
        if now != self._remembered:
            self._remembered = now
            if self._memory is not None:
                self._memory.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._memory, json.dumps(now, indent=2) + "\n")


def _is_same(one: Identity, other: Identity) -> bool:
    """Whether the second is the first, started anew."""
    same_place = one.partition is not None and one.partition == other.partition
    return one.name == other.name or same_place


def _read(memory: Path | None) -> dict[str, int]:
    """Partition by name."""
    pairs = _read_object(memory).items()
    return {name: p for name, p in pairs if isinstance(p, int) and not isinstance(p, bool)}


def _read_names(memory: Path | None) -> dict[str, Any]:
    return {node: name for node, name in _read_object(memory).items() if node.isdecimal()}


def _read_object(path: Path | None) -> dict[str, Any]:
    """A JSON object; a file that is damaged is as good as none."""
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
