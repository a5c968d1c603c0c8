"""Health of a container's programs, for its health check; and why a process was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from flsimulation.host.usage import machine_memory_bytes
from flsimulation.metrics.container import container_usage, oom_kills
from flsimulation.metrics.table import HEALTH_METRIC, make_metric
from flsimulation.runtimes.network.names import TROUBLE

CLIENT_BYTES = 650 * 2**20
"""Memory that a client of the default experiment needs (docs/network.md says how it was measured)."""

_KILLS = 2  # in a row, without a reply between them, that make a container unhealthy ...
_KILLS_SECONDS = 60.0  # ... for this time after the last: another experiment may need less

_kills_seen = oom_kills()
"""Processes that the kernel killed because memory ran out, as far as this process has seen."""


class Health:
    """Whether the container can do its work, as a metric.

    Parameters
    ----------
    registry : CollectorRegistry
        Where to serve the metric.
    clock : callable
        Seconds, as ``time.monotonic``.
    """

    def __init__(
        self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._is_down = False
        self._kills, self._killed_at = 0, 0.0
        gauge = make_metric(HEALTH_METRIC, registry)
        assert isinstance(gauge, Gauge)  # noqa: S101 - the table says so
        gauge.set_function(lambda: float(self.fails))

    @property
    def fails(self) -> bool:
        """Whether the container cannot do its work, as far as known."""
        lately = self._clock() - self._killed_at < _KILLS_SECONDS
        return self._is_down or (self._kills >= _KILLS and lately)

    def is_up(self) -> None:
        """Note that the programs run."""
        self._is_down = False

    def is_down(self) -> None:
        """Note that the programs ended by themselves."""
        self._is_down = True

    def message_was_killed(self) -> None:
        """Note that the process of a message was killed."""
        self._kills, self._killed_at = self._kills + 1, self._clock()

    def message_was_answered(self) -> None:
        """Note that the process of a message replied."""
        self._kills = 0


def see_kills() -> bool | None:
    """Whether the kernel killed a process because memory ran out since the last call; None if unknown."""
    global _kills_seen
    before, _kills_seen = _kills_seen, oom_kills()
    return None if before is None or _kills_seen is None else _kills_seen > before


def describe_end(status: int, variable: str = "CLIENT_MEMORY") -> str:
    """How a process ended, with the cause as far as the kernel reports it, and the remedy.

    Parameters
    ----------
    status : int
        Exit status, or minus the number of the signal.
    variable : str
        The setting that limits the container's memory.
    """
    if status >= 0:
        return f"ended with status {status}"
    ended = f"ended by {signal.Signals(-status).name}"
    if -status != signal.SIGKILL:
        return ended
    short = see_kills()
    if short is False:
        return f"{ended}, not out of memory as far as the kernel reports"
    sure = "out of memory" if short else "most likely out of memory"
    limit = container_usage().memory_limit_bytes
    if limit >= machine_memory_bytes():
        return f"{ended}, {sure}; raise its memory limit"
    needs = f"about {_mib(CLIENT_BYTES)} are needed" if limit < CLIENT_BYTES else "it needs more"
    return f"{ended}, {sure}; {variable} is {_mib(limit)}, {needs}"


def keep_trouble(sentence: str) -> None:
    """Store what went wrong, for the next reply that identifies this client."""
    if path := os.environ.get(TROUBLE):
        with contextlib.suppress(OSError):
            Path(path).write_text(sentence, encoding="utf-8")


def take_trouble() -> str:
    """What went wrong since the last reply that contained it; "" if nothing did."""
    if not (path := os.environ.get(TROUBLE)):
        return ""
    try:
        sentence = Path(path).read_text(encoding="utf-8")
        Path(path).unlink()
    except OSError:
        return ""
    return sentence


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}m"
