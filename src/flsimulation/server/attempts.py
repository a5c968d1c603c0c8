"""Clients whose trainings all failed in a run, or that never took part in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from flsimulation.events import ClientReplied, ClientsConnected, Event, RunStarted

_NAMED = 3  # clients named in one sentence


class Attempts:
    """A sink that counts the failed trainings of clients that never succeeded.

    A client is reported if it was requested to train at least twice (once in a run of one round) and
    failed each time. In a large population a client may train only once, and a single failure means
    little.

    Parameters
    ----------
    earlier : iterable
        Partition, and reason of the failure or None, of each training before a run was resumed.
    """

    def __init__(self, earlier: Iterable[tuple[int, str | None]] = ()) -> None:
        self._earlier = earlier
        self._succeeded = bytearray()  # one byte per client: populations are large
        self._failed: Counter[int] = Counter()
        self._least = 2
        self._absent: set[int] | None = None  # partitions that were never connected
        self._sites: tuple[str, ...] = ()

    def __call__(self, event: Event) -> None:
        """Count the trainings."""
        if isinstance(event, RunStarted):
            self._succeeded = bytearray(event.experiment.data.clients)
            self._sites = tuple(event.experiment.data.sites)
            self._least = min(2, event.experiment.strategy.rounds)
            for partition, reason in self._earlier:
                self._count(partition, reason)
        elif isinstance(event, ClientsConnected):
            self._saw(event)
        elif isinstance(event, ClientReplied) and event.phase == "train":
            self._count(event.partition, event.reason)

    def _saw(self, event: ClientsConnected) -> None:
        if self._absent is None:  # usually all are there, and there may be a million
            is_full = len(event.partitions) == event.expected
            self._absent = set() if is_full else set(range(event.expected))
        if self._absent:
            self._absent -= {*event.partitions}

    def _count(self, partition: int, reason: str | None) -> None:
        if reason is None:
            self._succeeded[partition] = 1
            self._failed.pop(partition, None)
        elif not self._succeeded[partition]:
            self._failed[partition] += 1

    def never_connected(self) -> str:
        """One sentence with the clients that never took part in the run; "" if there is none."""
        never = [p for p in sorted(self._absent or ()) if not self._succeeded[p]]
        return _without(never, self._sites, "connected") if never else ""

    def never_succeeded(self) -> str:
        """One sentence with the clients that never succeeded; "" if there is none."""
        never = sorted(p for p, failures in self._failed.items() if failures >= self._least)
        if not never:
            return ""
        return _without(never, (), "succeeded")


def _without(never: Sequence[int], sites: Sequence[str], what: str) -> str:
    """The sentence that the model is made without some clients' data."""
    more = f" and {len(never) - _NAMED} more" if len(never) > _NAMED else ""
    names = ", ".join(f"{p} ({sites[p]})" if sites else str(p) for p in never[:_NAMED])
    client, their = ("client", "its") if len(never) == 1 else ("clients", "their")
    return f"{client} {names}{more} never {what}: the model is made without {their} data"
