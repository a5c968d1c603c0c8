"""A command with all that it starts: its memory while it runs, and nothing of it left afterwards.

Linux only. Programs that leave their parent (Ray's daemons do) become children of this process, so
that they are found, counted and ended like the others, and none that another process started is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
_PROC = Path("/proc")
_SAMPLE_SECONDS = 0.25  # at least, from one look at the memory to the next
_SAMPLE_SHARE = 0.02  # of a core, at most, that the looks take; they cost by the memory
_GRACE_SECONDS = 10.0  # from the request to end to the kill


def adopt_orphans(*, wanted: bool = True) -> None:
    """Let this process be the parent of what its descendants leave behind, or not any more."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Processes below ``root``, parents before their children."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):  # it ended meanwhile
                # behind the name, which may hold anything: the state, then the parent
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found[1:]


def pss_bytes(processes: list[int]) -> int:
    """Memory of these processes, each shared page counted once among those that share it."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):  # it ended meanwhile
            text = (_PROC / str(process) / "smaps_rollup").read_text()
            if match := re.search(r"^Pss:\s*(\d+) kB", text, re.MULTILINE):
                total += int(match[1]) * 1024
    return total


def end_all() -> None:
    """End every process below this one: by request, then by force. Ctrl-C does not stop this."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    until = time.monotonic() + _GRACE_SECONDS
    asked: set[int] = set()
    try:
        # looked for twice: the first time one may just have changed its parent
        while left := descendants(os.getpid()) or descendants(os.getpid()):
            force = time.monotonic() > until
            for process in left:
                if force or process not in asked:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL if force else signal.SIGTERM)
                with contextlib.suppress(ChildProcessError):  # it is another's child, so far
                    os.waitpid(process, os.WNOHANG)
            asked.update(left)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGINT, interrupt)


def run(
    command: list[str], folder: Path, environment: dict[str, str], limit_seconds: float
) -> tuple[int, float, int]:
    """Run the command in ``folder``, its output in ``folder/log``.

    Returns
    -------
    (int, float, int)
        Its exit status, seconds, and the largest memory in bytes of all its processes together.

    Raises
    ------
    TimeoutError
        If it ran longer than ``limit_seconds``; it was ended then.
    """
    peak, pause = 0, _SAMPLE_SECONDS
    try:
        with (folder / "log").open("wb") as log:
            began = time.perf_counter()
            program = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process, which ends the others
            )
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = program.wait(pause)
                    return status, time.perf_counter() - began, peak
                if time.perf_counter() - began > limit_seconds:
                    raise TimeoutError
                looked = time.thread_time()
                peak = max(peak, pss_bytes(descendants(os.getpid())))
                pause = max(_SAMPLE_SECONDS, (time.thread_time() - looked) / _SAMPLE_SHARE)
    finally:
        end_all()
