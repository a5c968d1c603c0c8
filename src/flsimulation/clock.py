"""What time it is, for the exchange of messages, the grids and the engines.

They are handed a clock and never call ``time`` themselves: a run can then be in virtual time, where a
slow client costs nothing, and its tests wait for nothing.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time and lets it pass."""

    def time(self) -> float:
        """Unix time, in seconds."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""


class SystemClock:
    """The machine's clock."""

    def time(self) -> float:
        """Unix time, in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""
        time.sleep(seconds)


class VirtualClock:
    """A clock that only goes on when it is told to, or when somebody sleeps.

    Parameters
    ----------
    now : float
        The Unix time at which it starts, in seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def time(self) -> float:
        """Unix time, in seconds."""
        return self._now

    def monotonic(self) -> float:
        """Seconds, the same as `time`."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Be so many seconds later at once."""
        self._now += max(0.0, seconds)


SYSTEM: Clock = SystemClock()
"""The machine's clock, which everything takes unless it is handed another."""
