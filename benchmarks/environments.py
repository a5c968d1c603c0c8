"""Virtual environments made from lists of exact versions, and kept while the list stays the same."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

_REPORT_SECONDS = 5.0  # from one line of progress to the next


class InstallError(Exception):
    """An environment could not be made; the message is one line."""


def missing_tools() -> str | None:
    """What this Python lacks to make an environment, or nothing."""
    return next(
        (name for name in ("venv", "ensurepip") if not importlib.util.find_spec(name)), None
    )


def prepare(folder: Path, lock: Path, say: Callable[[str], None]) -> Path:
    """Make the environment in ``folder`` hold what ``lock`` lists; give its Python.

    ``lock`` lists every package by version, PyTorch among them. PyTorch comes first, with whatever
    it needs on this machine; the others come without dependencies, so that nothing else does.

    Raises
    ------
    InstallError
        If a step failed.
    """
    python, stamp = folder / "bin" / "python", folder / "made-from"
    made_from = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if python.is_file() and stamp.is_file() and stamp.read_text() == made_from:
        return python
    name, packages = lock.stem, [line for line in lock.read_text().splitlines() if "==" in line]
    torch = next(line for line in packages if line.startswith("torch=="))
    say(f"{name}: a new environment in {folder}, {len(packages)} packages")
    try:
        venv.create(folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InstallError(f"{name}: no environment in {folder}: {error}") from None
    for arguments in (
        [torch, "--constraint", str(lock)],
        ["--no-deps", "--requirement", str(lock)],
    ):
        _pip(python, name, arguments, say)
    stamp.write_text(made_from)
    return python


def _pip(python: Path, name: str, arguments: list[str], say: Callable[[str], None]) -> None:
    """Run ``pip install``, with a line of progress now and then."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    began = said = time.monotonic()
    last = ""
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as program:
        assert program.stdout is not None
        for text in program.stdout:
            line = text.strip()
            if line.startswith("ERROR"):
                last = line
            now = time.monotonic()
            doing, _, what = line.partition(" ")
            if doing == "Installing" or (doing == "Collecting" and now - said > _REPORT_SECONDS):
                what = what.split()[0] if doing == "Collecting" else "packages"
                say(f"{name}: {doing.lower()} {what}, {now - began:.0f} s")
                said = now
    if program.returncode:
        raise InstallError(
            f"{name}: not installed: {last or f'pip ended with {program.returncode}'}"
        )
