"""What this container takes of the machine: control groups of version 2 and version 1.

https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/. Outside of a container the
same files tell of the whole session; where there are none, this process and the machine are told.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from flsimulation.telemetry.process import machine_memory_bytes
from flsimulation.telemetry.table import CONTAINER_METRICS

_NO_LIMIT = 2**60  # bytes; version 1 writes "no limit" as a number near 2**63


@dataclass(frozen=True)
class Usage:
    """Use and limits of a container."""

    cpu_seconds: float
    cpu_limit_cores: float
    memory_bytes: int
    """In use, without file cache that can be dropped: what counts against the limit."""
    memory_limit_bytes: int


def container_usage(root: Path = Path("/sys/fs/cgroup")) -> Usage:
    """Use and limits as the control group's files tell them.

    Parameters
    ----------
    root : Path
        Where the control groups are mounted.
    """
    if (root / "cgroup.controllers").is_file() or (root / "cpu.stat").is_file():
        return _version_2(root)
    if (root / "cpuacct" / "cpuacct.usage").is_file():
        return _version_1(root)
    return _process()


def _version_2(root: Path) -> Usage:
    cpu = _table(root / "cpu.stat")
    memory = _table(root / "memory.stat")
    quota, _, period = (_text(root / "cpu.max") or "max 100000").partition(" ")
    used = _number(root / "memory.current")
    if used is None or "usage_usec" not in cpu:
        return _process()
    return Usage(
        cpu["usage_usec"] / 1e6,
        _cores(quota, period),
        max(0, used - memory.get("inactive_file", 0)),
        _limit(_text(root / "memory.max")),
    )


def _version_1(root: Path) -> Usage:
    memory = _table(root / "memory" / "memory.stat")
    used = _number(root / "memory" / "memory.usage_in_bytes")
    if used is None:
        return _process()
    quota = _text(root / "cpu" / "cpu.cfs_quota_us") or "-1"
    period = _text(root / "cpu" / "cpu.cfs_period_us") or "100000"
    return Usage(
        (_number(root / "cpuacct" / "cpuacct.usage") or 0) / 1e9,
        _cores(quota, period),
        max(0, used - memory.get("total_inactive_file", 0)),
        _limit(_text(root / "memory" / "memory.limit_in_bytes")),
    )


def _process() -> Usage:
    times = os.times()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = times.user + times.system + times.children_user + times.children_system
    return Usage(seconds, float(os.cpu_count() or 1), peak, machine_memory_bytes())


def _cores(quota: str, period: str) -> float:
    """Cores that a quota of a period comes to; those of the machine without a quota."""
    cores = float(os.cpu_count() or 1)
    return cores if quota in ("max", "-1") else min(cores, float(quota) / float(period))


def _limit(text: str | None) -> int:
    machine = machine_memory_bytes()
    limit = int(text) if text and text.isdecimal() else _NO_LIMIT
    return machine if limit >= _NO_LIMIT else min(limit, machine)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in (_text(path) or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


class ContainerCollector(Collector):
    """Reads the container's use anew for every scrape."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup")) -> None:
        self._root = root

    def collect(self) -> Iterator[Family]:
        """One family for each row of the table."""
        usage = container_usage(self._root)
        values = {
            "fl_container_cpu_seconds_total": usage.cpu_seconds,
            "fl_container_cpu_limit_cores": usage.cpu_limit_cores,
            "fl_container_memory_bytes": float(usage.memory_bytes),
            "fl_container_memory_limit_bytes": float(usage.memory_limit_bytes),
        }
        for metric in CONTAINER_METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            yield kind(metric.name, metric.help, value=values[metric.name])
