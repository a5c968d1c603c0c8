"""The lock that keeps a run directory to one writer, and errors where it cannot be written."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from flsimulation.errors import InputError, RunError
from flsimulation.host.processes import alone, is_taken
from flsimulation.rundir.layout import CHECKPOINT

_LOCK = ".lock"
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space there",
    errno.EDQUOT: "the quota of disk space is used up; delete what is not needed there",
}


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Lock a run directory, so that this is the only process that writes it inside the block.

    The lock is released when the process ends, also if it is killed.

    Raises
    ------
    InputError
        If another process is writing it, or a file in it is a symbolic link.
    RunError
        If it cannot be written.
    """
    _refuse_links(run_dir)
    with contextlib.ExitStack() as stack:
        with storing(run_dir / _LOCK):
            here = stack.enter_context(alone(run_dir / _LOCK))
        if not here:
            raise InputError(
                f"{run_dir}: another process is writing this run; wait for its end, or stop it"
            )
        yield


def _refuse_links(run_dir: Path) -> None:
    """Refuse a run directory from elsewhere whose links would lead writes out of it."""
    for path in (run_dir / _LOCK, run_dir / CHECKPOINT, *(run_dir / CHECKPOINT).glob("*")):
        if path.is_symlink():
            raise InputError(
                f"{path}: is a symbolic link, through which a run is not written; "
                f"replace it by the file itself"
            )


def is_claimed(run_dir: Path) -> bool:
    """Whether a process is writing a run directory."""
    return is_taken(run_dir / _LOCK)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Raise `RunError` where ``path``, or a file in it, cannot be written inside the block."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
        raise RunError(f"{error.filename or path}: cannot be written: {reason}") from error
