"""Saying whom a phase waits for, where it takes much longer than the others took."""

from __future__ import annotations

from collections.abc import Sequence

from flsimulation.clock import SYSTEM, Clock
from flsimulation.events import ClientsAwaited, Phase, Sink

_FIRST_SECONDS = 10.0  # of a phase, in which nothing is said
_TIMES_OTHERS = 2.0  # as long as the last answer took


class Awaiting:
    """Says again and again, less and less often, which clients a phase waits for.

    Parameters
    ----------
    round, phase
        As in the events of the phase.
    emit : callable
        Takes the events.
    clock : Clock
        What time it is.
    """

    def __init__(self, round: int, phase: Phase, emit: Sink, clock: Clock = SYSTEM) -> None:
        self._round, self._phase, self._emit, self._clock = round, phase, emit, clock
        self._began = clock.monotonic()
        self._others = 0.0
        self._next = _FIRST_SECONDS

    def answered(self) -> None:
        """An answer has come."""
        self._others = self._clock.monotonic() - self._began
        self._next = max(self._next, _TIMES_OTHERS * self._others)

    def look(self, missing: Sequence[int], cohort: int) -> None:
        """Say who is missing of a cohort, if it is time and most of the others have answered."""
        took = self._clock.monotonic() - self._began
        if took < self._next or not 0 < len(missing) <= cohort / 2:
            return
        self._emit(ClientsAwaited(self._round, self._phase, tuple(missing), took, self._others))
        self._next = 2 * took
