"""Assigns partitions to the nodes of a network.

A client that is configured for a partition keeps it. The others get the lowest free one, which the
server stores by the client's name, so that a client that reconnects gets the same partition again.
Two clients never share a partition. Clients beyond the experiment's number are spares: they take
over partitions that become free.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flsimulation.errors import RunError
from flsimulation.host.files import write_atomic


@dataclass(frozen=True)
class Identity:
    """What a node reports about its client."""

    name: str
    """Stays the same when the client reconnects, unlike Flower's node id."""
    partition: int | None
    """The partition that it is configured for; None if it has no such setting."""
    trouble: str = ""
    """What went wrong at the client since its last report, as the end of a sentence."""


class PartitionTable:
    """Partitions of the connected nodes.

    Parameters
    ----------
    clients : int
        Number of partitions.
    memory : Path, optional
        File that stores the partition of each name between runs.
    verified : bool
        Whether names are those of the clients' keys. Then a client that is configured for a
        connected client's partition during a run is another client, and does not get it.
    sites : sequence of str
        Name of each partition's site, which where names are verified only the client of that name may
        hold; empty if any client may hold any.
    """

    def __init__(
        self,
        clients: int,
        memory: Path | None = None,
        *,
        verified: bool = False,
        sites: Sequence[str] = (),
    ) -> None:
        self._clients = clients
        self._verified, self._sites = verified, sites
        self._memory = memory
        self._remembered = _read(memory)
        self._nodes_memory = memory and memory.with_name(f"{memory.stem}-nodes.json")
        self._names = {
            int(node): str(name) for node, name in _read_names(self._nodes_memory).items()
        }
        self._identities: dict[int, Identity] = {}
        self.partitions: dict[int, int] = {}
        """Partition of every node that has one, by partition."""
        self.refused: dict[int, str] = {}
        """Why connected nodes cannot hold what they are configured for, each in one line."""

    def identity_of(self, node: int) -> Identity | None:
        """What a connected node reported about its client; None if it has not."""
        return self._identities.get(node)

    def name_of(self, partition: int) -> str | None:
        """Name of the client that holds a partition, or held it last; the site's, where it is one's."""
        if self._sites:
            return self._sites[partition]
        names = [name for name, held in self._remembered.items() if held == partition]
        return names[-1] if names else None

    def name_of_node(self, node: int) -> str:
        """Name of the client at a node, from this run or an earlier one."""
        return self._names.get(node, f"a client that never reported its name (node {node})")

    @property
    def nodes(self) -> set[int]:
        """Every connected node that reported its name, spares included."""
        return set(self._identities)

    def update(
        self, online: Iterable[int], met: Mapping[int, Identity], *, strict: bool = True
    ) -> list[tuple[Identity, str]]:
        """Remove disconnected nodes, add those that reported, and assign free partitions.

        A client that is configured for a partition that it cannot hold is refused: it has none, and
        stops nobody else.

        Parameters
        ----------
        online : iterable of int
            Connected nodes.
        met : mapping of int to Identity
            New reports, and again those of refused nodes: they are accepted once the reason is gone.
        strict : bool
            Whether no other client may be configured for a connected client's partition. Not during a
            run where names are not those of keys: then the other is the same client, restarted.

        Returns
        -------
        list of (Identity, str)
            Clients that are refused, each with one line; once for each node and reason.
        """
        there = set(online)
        self._identities = {n: i for n, i in self._identities.items() if n in there}
        self._forget_gone()
        before = self.refused
        self.refused = {n: why for n, why in before.items() if n in there and n not in met}
        news = []
        for node, identity in met.items():
            if (why := self._why_not(identity, strict=strict)) is not None:
                self.refused[node] = why
                if before.get(node) != why:
                    news.append((identity, why))
                continue
            # A second node with the same name is a client that was restarted: its old node is dead,
            # although a SuperLink takes a minute to notice.
            self._identities = {
                n: i for n, i in self._identities.items() if not self._is_same(i, identity)
            }
            self._identities[node] = identity
        if met:
            self._remember_names(there)
        self._forget_gone()
        self._fill(evict=strict or not self._verified)
        self.partitions = dict(sorted(self.partitions.items(), key=lambda item: item[1]))
        return news

    def check(self, identity: Identity) -> None:
        """Raise `RunError` if a client cannot hold the partition that it is configured for."""
        if (why := self._why_not(identity, strict=True)) is not None:
            raise RunError(why)

    def _why_not(self, identity: Identity, *, strict: bool) -> str | None:
        """Why a client cannot hold the partition that it is configured for; None if it can."""
        name, wanted = identity.name, identity.partition
        if wanted is None:
            return None
        if not 0 <= wanted < self._clients:
            return (
                f"client {name} is configured for partition {wanted}, but the experiment has "
                f"partitions 0 to {self._clients - 1}; change its partition or data.clients"
            )
        if not self._may_hold(name, wanted):
            site = self._sites[wanted]
            return (
                f"client {name} was started as site {site}, which only the client with the key of the "
                f"name {site} is; start it with --name {site}, or stop it"
            )
        others = {i.name for i in self._identities.values() if i.partition == wanted}
        if not strict:  # who was given a partition before the run keeps it
            others |= {self._identities[n].name for n, p in self.partitions.items() if p == wanted}
        if (strict or self._verified) and (others := others - {name}):
            return (
                f"client {name} is configured for partition {wanted}, which client {min(others)} holds; "
                f"configure a different one for each"
            )
        return None

    def _fill(self, *, evict: bool) -> None:
        for node, identity in self._identities.items():  # first those configured for one
            if identity.partition is not None and node not in self.partitions:
                if not evict and self._is_anothers(identity.partition, identity.name):
                    continue
                self._evict(identity.partition)
                self.partitions[node] = identity.partition
        without = [n for n in self._identities if n not in self.partitions]
        without.sort(key=lambda node: self._identities[node].name)
        for own in (True, False):  # then those that reconnect, and last new ones
            for node in without:
                if node not in self.partitions:
                    self._place(node, own=own)
        self._remember()

    def _place(self, node: int, *, own: bool) -> None:
        name, held = self._identities[node].name, self.partitions.values()
        free = [p for p in range(self._clients) if p not in held and self._may_hold(name, p)]
        if own:
            free = [p for p in free if self._remembered.get(name) == p]
        else:  # first those that no client held before
            free.sort(key=lambda p: (p in self._remembered.values(), p))
        if free:
            self.partitions[node] = free[0]

    def _may_hold(self, name: str, partition: int) -> bool:
        return not (self._verified and self._sites) or self._sites[partition] == name

    def _is_anothers(self, partition: int, name: str) -> bool:
        """Whether another connected client holds a partition, or held it last."""
        there = {identity.name for identity in self._identities.values()} - {name}
        last = {other for other, held in self._remembered.items() if held == partition}
        return partition in self.partitions.values() or bool(last & there)

    def _is_same(self, one: Identity, other: Identity) -> bool:
        """Whether the second is the same client as the first, restarted."""
        same_place = one.partition is not None and one.partition == other.partition
        return one.name == other.name or (same_place and not self._verified)

    def _forget_gone(self) -> None:
        self.partitions = {n: p for n, p in self.partitions.items() if n in self._identities}

    def _evict(self, partition: int) -> None:
        self.partitions = {n: p for n, p in self.partitions.items() if p != partition}

    def _remember_names(self, there: set[int]) -> None:
        """Store the names of the connected nodes: one may not report in the next run."""
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


def _read(memory: Path | None) -> dict[str, int]:
    """Stored partition of each name."""
    pairs = _read_object(memory).items()
    return {name: p for name, p in pairs if isinstance(p, int) and not isinstance(p, bool)}


def _read_names(memory: Path | None) -> dict[str, Any]:
    return {node: name for node, name in _read_object(memory).items() if node.isdecimal()}


def _read_object(path: Path | None) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing or damaged."""
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
