"""What this process takes from the machine."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")  # of Linux


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far.

    Where Linux tells it, of this program alone: ``getrusage`` also counts what the process held
    before it became this program, which is its parent's.
    """
    if _STATUS.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.M)):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # others count in KiB


def machine_memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
