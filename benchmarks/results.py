"""How every benchmark writes its figures: with the command that gave them, and the machine."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from flsimulation.host.files import (
    write_atomic,
)  # before torch: it lets OpenMP's waiting threads sleep
import torch

_CPUINFO = Path("/proc/cpuinfo")  # of Linux
_MEMINFO = Path("/proc/meminfo")


def _found(path: Path, pattern: str) -> str | None:
    """What the first match of ``pattern`` holds in this file of the system, if there is one."""
    text = path.read_text() if path.is_file() else ""
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None


def machine() -> dict[str, Any]:
    """What the figures were measured on; ``threads`` are PyTorch's."""
    memory_kib = _found(_MEMINFO, r"^MemTotal:\s*(\d+) kB")
    return {
        "processor": _found(_CPUINFO, r"^model name\s*:\s*(.+?)\s*$") or platform.machine(),
        "cores": os.cpu_count(),
        "memory-bytes": None if memory_kib is None else int(memory_kib) * 1024,
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def json_file(text: str) -> Path:
    """The argument of ``--json``, refused before the run if the file could not be written after it."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: no such folder")
    return path


def command_line() -> str:
    """The command line as it was typed; Python's own path is left out."""
    return shlex.join(["python", *sys.argv])


def write(path: Path, command: str, results: Any) -> None:
    """Write ``results`` to ``path``, whole or not at all."""
    record = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "results": results,
    }
    write_atomic(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
