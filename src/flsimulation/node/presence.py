"""Which clients are connected, which have left, and for whom a round waits: what people are notified of."""

from __future__ import annotations

from collections.abc import Callable

from flsimulation.clock import Clock
from flsimulation.events import ClientMoved, ClientsConnected, Move, Sink
from flsimulation.experiment import Experiment

_NO_NAME = "unknown"


class Presence:
    """The connected partitions, as events.

    Parameters
    ----------
    experiment : Experiment
        Its number of clients, how long the run waits for them, and whether they may join late.
    name_of : callable
        Returns the name of the client that holds a partition, or held it last; None if unknown.
    emit : callable
        Called with the events.
    clock : Clock
        The clock to use.
    """

    def __init__(
        self,
        experiment: Experiment,
        name_of: Callable[[int], str | None],
        emit: Sink,
        clock: Clock,
    ) -> None:
        self.expected = experiment.data.clients
        self.return_wait = experiment.runtime.return_wait
        self._client_wait = experiment.runtime.client_wait
        self.joins = experiment.round.late == "join"
        self._name_of, self._emit, self._clock = name_of, emit, clock
        self._there: tuple[int, ...] | None = None
        self._known: set[int] = set()  # partitions whose client was connected in this run
        self._gone: dict[int, float] = {}  # partitions whose client disconnected, and when
        self.given_up: set[int] = set()
        """Partitions that are not waited for any more."""
        self.begun = False
        """Whether all clients have been connected once, or the run has begun without some."""
        self.round = 0
        """The last round that began."""

    def begin(self, partitions: set[int]) -> None:
        """Begin with these partitions, and wait for no other."""
        self.begun = True
        self.given_up = self.absent(partitions)

    def absent(self, partitions: set[int]) -> set[int]:
        """Partitions of the experiment that are not among these."""
        return set(range(self.expected)) - partitions

    def notice(self, partitions: tuple[int, ...]) -> None:
        """Emit what has changed since the last call, given the connected partitions."""
        if partitions == self._there:
            return
        before, self._there = {*(self._there or ())}, partitions
        now, there = self._clock.monotonic(), {*partitions}
        left = {*self._gone, *before} - there
        self._gone = {p: self._gone.get(p, now) for p in sorted(left)}
        self.given_up &= self.absent(there)
        waited = [p for p in self._gone if p not in self.given_up]
        gone = {str(p): self._name_of(p) or _NO_NAME for p in waited}
        self._emit(ClientsConnected(partitions, self.expected, gone, self._patience(gone)))
        self._moved(before, there)

    def _patience(self, gone: dict[str, str]) -> float | None:
        if not self.begun:
            return self._client_wait
        return self.return_wait if gone or not self.joins else None

    def _moved(self, before: set[int], there: set[int]) -> None:
        """Emit who joined and left during the run, where clients may."""
        if self.begun and self.joins:
            for partition in sorted(before - there):
                self._move(partition, "left")
            for partition in sorted(there - before):
                self._move(partition, "returned" if partition in self._known else "joined")
        self._known |= there

    def _move(self, partition: int, move: Move) -> None:
        name = self._name_of(partition) or _NO_NAME
        self._emit(ClientMoved(self.round, move, name, partition))

    def refuse(self, name: str, partition: int | None, why: str) -> None:
        """Emit that a client was refused."""
        self._emit(ClientMoved(self.round, "refused", name, partition, why))
