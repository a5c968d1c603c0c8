"""Reports the clients that a phase waits for, if they take much longer than the others."""

from __future__ import annotations

from collections.abc import Sequence

from flsimulation.clock import SYSTEM, Clock
from flsimulation.events import ClientsAwaited, Phase, Sink

_FIRST_SECONDS = 10.0  # at the start of a phase, without a report
_TIMES_OTHERS = 2.0  # of the time that the last reply took


class Awaiting:
    """Reports repeatedly, at growing intervals, which clients a phase waits for.

    Parameters
    ----------
    round, phase
        As in the events of the phase.
    emit : callable
        Called with the events.
    clock : Clock
        The clock to use.
    """

    def __init__(self, round: int, phase: Phase, emit: Sink, clock: Clock = SYSTEM) -> None:
        self._round, self._phase, self._emit, self._clock = round, phase, emit, clock
        self._began = clock.monotonic()
        self._others = 0.0
        self._next = _FIRST_SECONDS

    def answered(self) -> None:
        """Note that a reply has arrived."""
        self._others = self._clock.monotonic() - self._began
        self._next = max(self._next, _TIMES_OTHERS * self._others)

    def look(self, missing: Sequence[int], cohort: int) -> None:
        """Report the missing clients of a cohort, if it is time and at least half have replied."""
        took = self._clock.monotonic() - self._began
        if took < self._next or not 0 < len(missing) <= cohort / 2:
            return
        self._emit(ClientsAwaited(self._round, self._phase, tuple(missing), took, self._others))
        self._next = 2 * took
