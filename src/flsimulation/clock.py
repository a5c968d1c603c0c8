"""Clocks for the exchange of messages, the grids and the engines.

These take a clock and never call ``time`` themselves. So a run can be in virtual time, where a slow
client takes no real time, and tests do not wait.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Returns the time and sleeps."""

    def time(self) -> float:
        """Unix time, in seconds."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""

    def processor(self) -> float:
        """Seconds for which this thread had a processor, since some moment."""

    def sleep(self, seconds: float) -> None:
        """Let a number of seconds pass."""


class SystemClock:
    """The machine's clock."""

    def time(self) -> float:
        """Unix time, in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.perf_counter()

    def processor(self) -> float:
        """Seconds for which this thread had a processor, since some moment."""
        return time.thread_time()

    def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        time.sleep(seconds)


class VirtualClock:
    """A clock that advances only by `sleep`.

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

    def processor(self) -> float:
        """Seconds, the same as `time`."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Advance by a number of seconds, at once."""
        self._now += max(0.0, seconds)


SYSTEM: Clock = SystemClock()
"""The machine's clock, the default everywhere."""
