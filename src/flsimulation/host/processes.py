"""A process's end with its parent, work that Ctrl-C or another process does not disturb, its garbage."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import threading
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Let this process be ended when the one that started it is gone, however that ended.

    Parameters
    ----------
    number : Signals
        By which it is ended.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)  # of Linux


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no Ctrl-C or SIGTERM, or no second one, cut off the little that is done in the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ends}
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, before[number])


_locks: set[TextIOWrapper] = set()
"""Files that this process has locked in `alone`."""


def _leave_locks() -> None:
    """Close a parent's locks in its fork, which would hold them when the parent was killed."""
    for file in _locks:
        file.close()
    _locks.clear()


os.register_at_fork(after_in_child=_leave_locks)


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Whether no other process is inside such a block with the same file, which is made.

    A process that is killed has left the block. On a file system without locks no other process is
    noticed.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        _locks.add(file)
        try:
            yield True
        finally:
            _locks.discard(file)
            with contextlib.suppress(OSError):  # for a fork that is still there, too
                fcntl.flock(file, fcntl.LOCK_UN)


def is_taken(lock: Path) -> bool:
    """Whether a process, this one included, is inside `alone` with the file; nothing is written."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def compact() -> None:
    """Give back what loading left, and let forks share the rest: their collector leaves it alone."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of glibc


@contextlib.contextmanager
def imports_kept() -> Iterator[None]:
    """Let the garbage collector pass over what is there already: it stays, and is much.

    PyTorch, Lightning and Flower are half a million objects, and each full collection looks at all
    of them: a third of what a client cost beside its training. A block in this one passes over what
    has come since.
    """
    global _keeping
    if gc.get_freeze_count() and not _keeping:  # somebody else's, who may want the rest collected
        yield
        return
    gc.freeze()
    _keeping += 1
    try:
        yield
    finally:
        _keeping -= 1
        if not _keeping:
            gc.unfreeze()


_keeping = 0
"""How many blocks of `imports_kept` are open."""


def end_group(program: int) -> None:
    """End a program, if it still runs, and every process of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program, signal.SIGKILL)


def is_there(process: int) -> bool:
    """Whether a process of ours runs, or was not waited for yet."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
