"""What this container takes of the machine: control groups of version 2 and version 1.

https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/. Outside of a container the
same files count whatever else the session runs, other clients too, or there are none: then this
process and those that it started are counted, and the limits are the machine's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from flsimulation.host.usage import (
    ancestors,
    cpu_seconds,
    machine_memory_bytes,
    peak_memory_bytes,
    process_tree,
    proportional_bytes,
)
from flsimulation.metrics.table import CONTAINER_METRICS

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
    """Use and limits as the control group's files state them.

    Parameters
    ----------
    root : Path
        Where the control groups are mounted.
    """
    if (root / "cgroup.controllers").is_file() or (root / "cpu.stat").is_file():
        return _version_2(root)
    if (root / "cpuacct" / "cpuacct.usage").is_file():
        return _version_1(root)
    return own_usage()


def _version_2(root: Path) -> Usage:
    cpu = _table(root / "cpu.stat")
    memory = _table(root / "memory.stat")
    quota, _, period = (_text(root / "cpu.max") or "max 100000").partition(" ")
    used = _number(root / "memory.current")
    if used is None or "usage_usec" not in cpu:
        return own_usage()
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
        return own_usage()
    quota = _text(root / "cpu" / "cpu.cfs_quota_us") or "-1"
    period = _text(root / "cpu" / "cpu.cfs_period_us") or "100000"
    return Usage(
        (_number(root / "cpuacct" / "cpuacct.usage") or 0) / 1e9,
        _cores(quota, period),
        max(0, used - memory.get("total_inactive_file", 0)),
        _limit(_text(root / "memory" / "memory.limit_in_bytes")),
    )


def own_usage() -> Usage:
    """Use of this process and of all that it started, with the machine's limits."""
    tree = process_tree(os.getpid())
    times = os.times()
    seconds = sum(map(cpu_seconds, tree)) or times.user + times.system
    memory = sum(map(proportional_bytes, tree)) or peak_memory_bytes()  # where there is no /proc
    return Usage(seconds, float(os.cpu_count() or 1), memory, machine_memory_bytes())


def is_own(root: Path) -> bool:
    """Whether the control group holds nothing but this process, its parents and its children.

    Processes that enter a container from outside, as checks of its health do, are the container's.
    """
    files = (root / "cgroup.procs", root / "memory" / "cgroup.procs")
    listed = next((text for file in files if (text := _text(file))), "")
    here = {int(process) for process in listed.split()} - {0}  # 0: of another container
    others = here - {*ancestors(os.getpid()), *process_tree(os.getpid())}
    began_here = {1, _first(os.getpid())}  # which may have come from outside itself
    return not any(_first(process) in began_here for process in others)


def _first(process: int) -> int:
    """The process that all of this one's parents come from; itself if it has ended."""
    return [process, *ancestors(process)][-1]


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


def oom_kills(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Processes of the container that the kernel killed at its memory limit; None if it does not say.

    Parameters
    ----------
    root : Path
        Where the control groups are mounted.
    """
    version_2 = _table(root / "memory.events")  # no such file at a machine's own root
    version_1 = _table(root / "memory" / "memory.oom_control")
    return version_2.get("oom_kill", version_1.get("oom_kill"))


class ContainerCollector(Collector):
    """Reads the container's use for every scrape."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup")) -> None:
        self._root = root
        self._own = is_own(root)
        self._cpu_seconds = 0.0

    def collect(self) -> Iterator[Family]:
        """One family for each row of the table."""
        usage = container_usage(self._root) if self._own else own_usage()
        # The time of a process that was not waited for is lost; a counter never falls.
        self._cpu_seconds = max(self._cpu_seconds, usage.cpu_seconds)
        values = {
            "fl_container_cpu_seconds_total": self._cpu_seconds,
            "fl_container_cpu_limit_cores": usage.cpu_limit_cores,
            "fl_container_memory_bytes": float(usage.memory_bytes),
            "fl_container_memory_limit_bytes": float(usage.memory_limit_bytes),
        }
        for metric in CONTAINER_METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            yield kind(metric.name, metric.help, value=values[metric.name])
