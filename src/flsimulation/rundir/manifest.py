"""manifest.json: how a run ended, true also where nothing could be written at its end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flsimulation.errors import FLSimulationError, InputError
from flsimulation.host.files import write_atomic
from flsimulation.rundir.jsonlines import Record, decode, last_round, read_file
from flsimulation.rundir.layout import MANIFEST, ROUNDS
from flsimulation.rundir.storage import claimed, is_claimed

_RESERVE = ".reserve"
_SPARE_BYTES = 16384  # beside the manifest itself: the last one is longer than the first

KILLED = "its process was killed, or the machine stopped"
"""The error of a run whose process could write nothing more."""


class Manifest:
    """The manifest of a run that is being written.

    Parameters
    ----------
    run_dir : Path
        Where to write it.
    fields : mapping
        What is known before the run.
    """

    def __init__(self, run_dir: Path, fields: Mapping[str, Any]) -> None:
        self._path = run_dir / MANIFEST
        self._reserve = run_dir / _RESERVE
        self._fields = dict(fields)
        self._described = ""
        self._write()

    def describe(self, description: Mapping[str, Any]) -> None:
        """Add what stays as it is to the end: much text, made once."""
        self._described = json.dumps(description, indent=2)
        self._write()

    def update(self, fields: Mapping[str, Any]) -> None:
        """Write changed fields; ``OSError`` where that cannot be."""
        self._fields |= fields
        write_atomic(self._path, self._text())

    def close(self, fields: Mapping[str, Any]) -> None:
        """Write the last fields, with space that was kept for them where the disk is full."""
        self._reserve.unlink(missing_ok=True)
        self.update(fields)

    def _write(self) -> None:
        text = self._text()
        write_atomic(self._path, text)
        # no zeros, which some file systems do not store
        write_atomic(self._reserve, os.urandom(len(text) + _SPARE_BYTES))

    def _text(self) -> str:
        fields = json.dumps(self._fields, indent=2)
        if not self._described:
            return fields + "\n"
        return f"{fields[:-2]},{self._described[1:]}\n"


def read_manifest(run_dir: Path) -> Record:
    """A run's manifest as the file has it; empty if it is not there.

    Raises
    ------
    InputError
        If the file cannot be read, or is damaged.
    """
    path = run_dir / MANIFEST
    content = read_file(path)
    if content is None:
        return {}
    try:
        return decode(content)
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}; delete it to go on without it") from None


def settled(manifest: Mapping[str, Any], run_dir: Path) -> Record:
    """A manifest as the run is: one that nobody writes any more does not run.

    Parameters
    ----------
    manifest : mapping
        As the file has it.
    run_dir : Path
        Where the file is.
    """
    if manifest.get("state") != "running" or is_claimed(run_dir):
        return dict(manifest)
    return _ended(manifest, run_dir, "interrupted", KILLED)


def settle(run_dir: Path, state: str = "interrupted", error: str = KILLED) -> Record | None:
    """Write how a run ended whose process could not.

    Parameters
    ----------
    run_dir : Path
        The run directory.
    state : str
        ``interrupted`` or ``failed``.
    error : str
        What ended it.

    Returns
    -------
    dict or None
        The new manifest; None if there is nothing to set right: the run goes on, or wrote its end.
    """
    with contextlib.suppress(OSError, FLSimulationError):
        if read_manifest(run_dir).get("state") != "running":
            return None
        with claimed(run_dir):
            manifest = read_manifest(run_dir)
            if manifest.get("state") == "running":
                manifest = _ended(manifest, run_dir, state, error)
                (run_dir / _RESERVE).unlink(missing_ok=True)
                write_atomic(run_dir / MANIFEST, json.dumps(manifest, indent=2) + "\n")
                return manifest
    return None


def _ended(manifest: Mapping[str, Any], run_dir: Path, state: str, error: str) -> Record:
    return {**manifest, "state": state, "error": error, "rounds": last_round(run_dir / ROUNDS)}
