"""What this process, and those that it started, take from the machine."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

_PROC = Path("/proc")  # of Linux
_STATUS = _PROC / "self" / "status"
_PARENT, _TIMES = 1, slice(11, 15)  # fields of /proc/PID/stat after the name


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far.

    On Linux it is that of this program alone: ``getrusage`` also counts what the process held
    before it became this program, which is its parent's.
    """
    if _STATUS.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.M)):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # others count in KiB


def machine_memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def process_tree(process: int) -> set[int]:
    """A process and all that it started, as far as they are there; by its id."""
    parents = {
        int(path.name): int(fields[_PARENT])
        for path in _PROC.glob("[0-9]*")
        if (fields := _stat(int(path.name)))
    }
    found, new = {process}, {process}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def ancestors(process: int) -> list[int]:
    """The processes that a process was started by, from its parent on."""
    found: list[int] = []
    while fields := _stat(process):
        process = int(fields[_PARENT])
        if process == 0:
            break
        found.append(process)
    return found


def cpu_seconds(process: int) -> float:
    """CPU time of a process and of its children that ended; 0 if it is not there."""
    return sum(map(int, _stat(process)[_TIMES])) / os.sysconf("SC_CLK_TCK")


def proportional_bytes(process: int) -> int:
    """Memory of a process, with its share of what it has in common with others."""
    try:
        text = (_PROC / str(process) / "smaps_rollup").read_text()
    except OSError:
        return 0  # it has ended
    found = re.search(r"^Pss:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _stat(process: int) -> list[str]:
    """Fields of /proc/PID/stat after the name, which may hold anything; none if it has ended."""
    try:
        text = (_PROC / str(process) / "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
