"""Ends of a network's runs that their own processes cannot write or report in time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from flsimulation.errors import InputError, Interrupted
from flsimulation.events import RunFinished, RunStarted
from flsimulation.host.files import write_atomic
from flsimulation.internals.flower_words import PARENT
from flsimulation.rundir import RunRecord
from flsimulation.rundir.manifest import settle
from flsimulation.rundir.reader import run_directories

_GONE_SECONDS = 0.5  # for which Flower's own process is observed, to see whether it ended
_LOOK_SECONDS = 0.05
_SUPERLINK = "its SuperLink was killed or restarted, or the machine stopped"


def remember(memory: Path | None, run_dir: str) -> None:
    """Store the run directory that a SuperLink's server writes; only `settle_run` needs it."""
    if memory is not None:
        with contextlib.suppress(OSError):
            write_atomic(_note(memory), run_dir)


def settle_run(memory: Path | None, state: str, error: str) -> tuple[Path, dict[str, Any]] | None:
    """Write the end of the SuperLink's last run if its process was killed.

    Returns its run directory and manifest; None if nothing was written.
    """
    last = _last(memory)
    manifest = settle(last, state, error) if last is not None else None
    return (last, manifest) if last is not None and manifest is not None else None


def forget(memory: Path | None) -> None:
    """Forget the last run: another one begins, which has no run directory yet."""
    if memory is not None:
        with contextlib.suppress(OSError):
            _note(memory).unlink(missing_ok=True)


def progress(manifest: Mapping[str, Any]) -> tuple[int, float]:
    """Completed rounds of a run, and seconds from its start until now."""
    began = datetime.fromisoformat(manifest["started"])
    return int(manifest["rounds"]), (datetime.now(UTC) - began).total_seconds()


def settle_runs(memory: Path | None) -> list[tuple[Path, dict[str, Any]]]:
    """Write the ends of all runs whose processes were killed; returns directories and manifests.

    The last run of the SuperLink ended with it. Why other runs in the same folder ended is unknown;
    they may be runs in one process.

    Parameters
    ----------
    memory : Path, optional
        The SuperLink's file; its run directories are in the same folder.
    """
    if memory is None:
        return []
    last = settle_run(memory, "interrupted", _SUPERLINK)
    others = [(folder, settle(folder)) for folder in run_directories(memory.parent)]
    found = [(folder, manifest) for folder, manifest in others if manifest is not None]
    return [*([last] if last is not None else []), *found]


def last_end(memory: Path | None) -> tuple[RunStarted, RunFinished] | None:
    """First and last event of the SuperLink's last run if it was interrupted; for the metrics."""
    if memory is None:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, InputError):
        run = RunRecord(_note(memory).read_text(encoding="utf-8"))
        if run.manifest["state"] == "interrupted":
            end = RunFinished("interrupted", run.manifest["rounds"], 0.0, run.manifest["error"])
            return run.started(), end
    return None


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Make SIGTERM and SIGINT end the run within this block as Ctrl-C does; then ignore both.

    Flower's own handler would close the run's log first, and end the process within seconds. After
    the block Flower reports the run's end and closes its log, in at most five seconds. A heartbeat
    of another thread that comes after that report is refused, because the run has ended, and
    `flwr.supercore.retry.http_retry` then sends this process SIGINT.
    """
    is_running = True

    def end(number: int, _: FrameType | None) -> None:
        nonlocal is_running
        if is_running:
            is_running = False
            raise Interrupted(_cause(number))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        yield
    finally:
        is_running = False


def _cause(number: int) -> str:
    """What a signal to a run's process means. Flower sends SIGINT in two cases."""
    if number != signal.SIGINT:
        return "SIGTERM ended it, which its SuperLink sends when it is stopped"
    until = time.monotonic() + _GONE_SECONDS
    while time.monotonic() < until:
        if not _has_parent():
            return "its SuperLink ended"
        time.sleep(_LOOK_SECONDS)
    return "it was stopped"


def _has_parent() -> bool:
    """Whether Flower's process that started this one still runs."""
    try:
        os.kill(int(sys.argv[sys.argv.index(PARENT) + 1]), 0)
    except (ValueError, IndexError, PermissionError):
        return True  # unknown
    except ProcessLookupError:
        return False
    return True


def _last(memory: Path | None) -> Path | None:
    """Directory of the SuperLink's last run; None if unknown."""
    if memory is None:
        return None
    try:
        return Path(_note(memory).read_text(encoding="utf-8"))
    except OSError:
        return None


def _note(memory: Path) -> Path:
    return memory.with_suffix(".run")
