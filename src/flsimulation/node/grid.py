"""Flower's grid of a network, with a partition for each node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.sites.agree import Agreement
from flsimulation.errors import RunError
from flsimulation.events import Sink
from flsimulation.experiment import Experiment
from flsimulation.internals.flower_messages import Run, requested
from flsimulation.messages.batch import Batch, Task
from flsimulation.node.assignment import Identity, PartitionTable
from flsimulation.node.identified import Names
from flsimulation.node.introductions import Introductions
from flsimulation.node.late_sites import LateSites
from flsimulation.node.outbox import RESTARTED, Outbox, is_flowers_own, packed, replied_to
from flsimulation.node.presence import Presence
from flsimulation.server.grid import PartitionedGrid

_LOOK_SECONDS = 0.5  # between two updates of the connected nodes
_NAMED = 3  # most missing, and most refused clients in the message of a run that does not begin


def connect(
    grid: Grid,
    experiment: Experiment,
    emit: Sink,
    clock: Clock = SYSTEM,
    memory: Path | None = None,
    names: Names | None = None,
) -> AssignedGrid:
    """Wait for the experiment's clients; returns Flower's grid with their partitions.

    Parameters
    ----------
    grid : Grid
        Flower's own grid.
    experiment : Experiment
        Its number of clients, and how long it waits for them.
    emit : callable
        Notified when a client connects or disconnects.
    clock : Clock
        The clock that the grid uses.
    memory : Path, optional
        File that stores which client holds which partition.
    names : callable, optional
        Returns the name that belongs to each node's key, by node; without it, names are as reported.

    Raises
    ------
    RunError
        If they do not connect in time.
    """
    clients, patience = experiment.data.clients, experiment.runtime.client_wait
    least = clients if experiment.round.late == "refuse" else experiment.least_clients
    sites = experiment.data.sites
    table = PartitionTable(clients, memory, verified=names is not None, sites=sites)
    assigned = AssignedGrid(grid, table, experiment, emit, clock, names)
    if not assigned.wait(clients, patience) and not assigned.begin(least):
        needed = f", at least {least} needed" if least < clients else ""
        raise RunError(
            f"{len(assigned.partitions)} of {clients} clients connected within {patience:g} s{needed}; "
            f"start more clients, lower data.clients, or raise runtime.client-wait"
            f"{assigned.trouble}"
        )
    return assigned


class AssignedGrid(PartitionedGrid):
    """Flower's grid with a partition for each node; tasks contain their partition.

    Parameters
    ----------
    grid : Grid
        Flower's own grid.
    table : PartitionTable
        Assigns partitions to nodes.
    experiment : Experiment
        Its number of clients, and how long it waits for them.
    emit : callable
        Notified when a client connects or disconnects.
    clock : Clock
        The clock that the grid uses.
    names : callable, optional
        As in `connect`.
    """

    def __init__(
        self,
        grid: Grid,
        table: PartitionTable,
        experiment: Experiment,
        emit: Sink,
        clock: Clock = SYSTEM,
        names: Names | None = None,
    ) -> None:
        self._grid, self._table, self._clock = grid, table, clock
        self._own_names = names
        self._presence = Presence(experiment, table.name_of, emit, clock)
        self._late: LateSites | None = None
        self._met = Introductions(grid, names, table.name_of_node, clock)
        self._known: dict[int, Identity] = {}  # identities of all nodes that reported one
        self._away: dict[int, float] = {}  # disconnected nodes that owe a reply, and since when
        self._looked = float("-inf")
        self._outbox = Outbox(grid, clock)
        self._names: dict[int, str] = {}  # names of the nodes that got a task, at that time
        self._unavailable: dict[str, Message] = {}  # Flower's own replies for disconnected nodes

    @property
    def partitions(self) -> Mapping[int, int]:
        """Partition of every connected node that has one, by node, ascending by partition."""
        return self._table.partitions

    @property
    def costs_time(self) -> bool:
        """Yes: a message takes a fraction of a second, and a new process of the client."""
        return True

    def divided(self, batch: Batch) -> Iterator[tuple[int | None, Batch]]:
        """All tasks of a client in one message."""
        tasks: dict[int, list[Task]] = {}
        self._presence.round = max([self._presence.round, *(task.round for task in batch.tasks)])
        for task in batch.tasks:
            tasks.setdefault(task.partition, []).append(task)
        nodes = {partition: node for node, partition in self.partitions.items()}
        for partition, own in sorted(tasks.items()):
            yield nodes.get(partition), replace(batch, tasks=own)

    def look(self) -> None:
        """Update the connected nodes; requests the names of new ones, without waiting."""
        if self._clock.monotonic() - self._looked < _LOOK_SECONDS:
            return
        online = set(self._grid.get_node_ids())
        new = online - self._table.nodes - self._met.nodes
        back = {node: self._known[node] for node in new & self._known.keys()}
        self._met.ask(sorted(new - back.keys()))
        met = self._met.replies(online)
        names = {identity.name for identity in met.values()}  # their older nodes are dead
        self._known = {n: i for n, i in self._known.items() if i.name not in names} | met
        there = back | {n: identity for n, identity in met.items() if n in online}
        admitted = self._admitted(there, online)
        for identity, why in self._table.update(online, admitted, strict=not self._presence.begun):
            self._presence.refuse(identity.name, identity.partition, why)
        self._presence.notice(tuple(self.partitions.values()))
        self._away = {n: since for n, since in self._away.items() if n not in self.partitions}
        self._looked = self._clock.monotonic()

    def _admitted(self, met: dict[int, Identity], online: set[int]) -> dict[int, Identity]:
        """The clients that may take part; of sites that come late, those that fit the others."""
        if self._late is None:
            return met
        for node in self._late.forget(online):  # it may come back as another site
            self._known.pop(node, None)
        return self._late.admitted(met, online)

    def expect_late_sites(self, experiment: Experiment) -> None:
        """From now on admit the sites that are not connected only if they fit what the others agree."""

        def refuse(identity: Identity, why: str) -> None:
            self._presence.refuse(identity.name, identity.partition, why)

        present = set(self.partitions.values())
        check, clock = self._table.check, self._clock
        self._late = LateSites(self._grid, experiment, present, refuse, check, clock)

    def sites_agreed(self, agreement: Agreement) -> None:
        """Ask late sites from now on; a connected one that is not part of the agreement is late, too."""
        if self._late is None:
            return
        self._late.agreed(agreement)
        late = {n for n, p in self.partitions.items() if not agreement.sizes[p].examples}
        self._table.update(self._table.nodes - late, {}, strict=False)

    def examples_of(self, partition: int) -> int | None:
        """Examples that a client declared when it joined late; None for all others."""
        return self._late.examples.get(partition) if self._late is not None else None

    def why_lost(self, partition: int, node: int) -> str | None:
        """Why a disconnected node will not reply; None if it still may.

        A node that reconnects still has its message; a client that was restarted does not.
        """
        holder = self.node_of(partition)
        identity = self._table.identity_of(holder) if holder is not None else None
        if identity is not None and identity.name == self._names.get(node):
            return identity.trouble or RESTARTED
        now = self._clock.monotonic()
        if now - self._away.setdefault(node, now) < self._presence.return_wait:
            return None
        if identity is not None:
            return f"it disconnected before it replied, and client {identity.name} took its place"
        self._presence.given_up.add(partition)
        waited = f"{self._presence.return_wait:g} s"
        return f"it disconnected before it replied, and did not reconnect within {waited}"

    def wait(self, least: int, seconds: float) -> bool:
        """Wait until ``least`` clients hold a partition; False if that takes too long."""
        until = self._clock.monotonic() + seconds
        self.look()
        while len(self.partitions) < least and self._clock.monotonic() < until:
            self._clock.sleep(_LOOK_SECONDS)
            self.look()
        if len(self.partitions) >= self._presence.expected:
            self._presence.begun = True
        return len(self.partitions) >= least

    def begin(self, least: int) -> bool:
        """Begin without the clients that are not connected; False if fewer than ``least`` are."""
        partitions = set(self.partitions.values())
        if len(partitions) < least:
            return False
        self._presence.begin(partitions)
        return True

    def gather(self, seconds: float) -> int:
        """Wait for disconnected clients, once per absence; returns how many are connected."""
        self.look()
        presence = self._presence
        absent = presence.absent(set(self.partitions.values()))
        if absent - presence.given_up:
            self.wait(presence.expected - len(absent & presence.given_up), seconds)
        presence.given_up = presence.absent(set(self.partitions.values()))
        return len(self.partitions)

    @property
    def trouble(self) -> str:
        """What is known about missing clients, as the end of a sentence."""
        absent = sorted(self._presence.absent(set(self.partitions.values())))
        silent, found = self._met.silent, map(self._table.name_of, absent)
        names = [name for name in found if name is not None and name not in silent]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        missing = [f"missing: {', '.join(names[:_NAMED])}{more}"] if names else []
        refused = [*self._table.refused.values()][:_NAMED]
        return "".join(f"; {known}" for known in (*missing, *refused)) + self._met.trouble

    def set_run(self, run: Run) -> None:
        """Set the run's description."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._grid.run

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send copies of messages, packed."""
        models: dict[int, ConfigRecord | ArrayRecord] = {}  # usually one, the same for all
        sent = [packed(message, models) for message in messages]
        identifiers = self._outbox.push(sent)
        nodes = (message.metadata.dst_node_id for message in sent)
        identities = {node: self._table.identity_of(node) for node in nodes}
        self._names |= {n: i.name for n, i in identities.items() if i is not None}
        return identifiers

    def pull_messages(
        self,
        message_ids: Iterable[str] | None = None,
        *,
        reply_to_message_ids: Iterable[str] | None = None,
    ) -> Iterable[Message]:
        """Replies that have arrived, and failures in place of those that will not arrive.

        Flower 1.42 replies in place of a disconnected node. Why it disconnected, and whether it
        reconnects, is known only a little later, from `look` and `why_lost`.
        """
        wanted = set(requested(message_ids, reply_to_message_ids, self._outbox.identifiers))
        self._outbox.keep(wanted)
        self._names = {n: a for n, a in self._names.items() if n in self._outbox.nodes}
        self._unavailable = {i: m for i, m in self._unavailable.items() if i in wanted}
        replies = self._outbox.pull(wanted - self._unavailable.keys())
        late = [reply for reply in replies if is_flowers_own(reply)]
        self._unavailable |= {replied_to(reply): reply for reply in late}
        if late:
            self._looked = float("-inf")  # the connected nodes have changed
            if self._own_names is not None:  # a key keeps its node: it may come back restarted
                gone = self._outbox.nodes_of(late)
                self._known = {n: i for n, i in self._known.items() if n not in gone}
                reported = self._table.nodes | self._table.refused.keys()
                self._table.update(reported - gone, {}, strict=False)
            self.look()
        there = self.partitions
        given_up = [i for i in self._unavailable if self._outbox.node_of(i) in there]
        return [
            *(reply for reply in replies if not is_flowers_own(reply)),
            *(self._explained(self._unavailable.pop(i)) for i in given_up),
        ]

    def _explained(self, unavailable: Message) -> Message:
        """Flower's own reply; if the client has been restarted, what it says of that."""
        identity = self._table.identity_of(self._outbox.node_of(replied_to(unavailable)) or 0)
        return self._outbox.explained(unavailable, identity.trouble if identity else "")
