"""manifest.json: the state of a run, correct also if its end could not be written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flsimulation.errors import FLSimulationError, InputError
from flsimulation.host.files import write_atomic
from flsimulation.rundir.jsonlines import JsonObject, decode, last_round, read_file
from flsimulation.rundir.layout import MANIFEST, ROUNDS
from flsimulation.rundir.shapes import check_manifest
from flsimulation.rundir.storage import claimed, is_claimed

_RESERVE = ".reserve"
_SPARE_BYTES = 16384  # more than the manifest's size: the last one is longer than the first

KILLED = "its process was killed, or the machine stopped"
"""The error of a run whose process could not write its end."""


class Manifest:
    """The manifest of a run that is being written.

    Parameters
    ----------
    run_dir : Path
        The run directory.
    fields : mapping
        The fields that are known before the run.
    """

    def __init__(self, run_dir: Path, fields: Mapping[str, Any]) -> None:
        self._path = run_dir / MANIFEST
        self._reserve = run_dir / _RESERVE
        self._fields = dict(fields)
        self._described = ""
        self._write()

    def describe(self, description: Mapping[str, Any]) -> None:
        """Add fields that do not change until the end; they are encoded once, being long."""
        self._described = json.dumps(description, indent=2)
        self._write()

    def update(self, fields: Mapping[str, Any]) -> None:
        """Write changed fields. Raises ``OSError`` if that fails."""
        self._fields |= fields
        write_atomic(self._path, self._text())

    def close(self, fields: Mapping[str, Any]) -> None:
        """Write the last fields, on a full disk into the space reserved for them."""
        self._reserve.unlink(missing_ok=True)
        self.update(fields)

    def _write(self) -> None:
        text = self._text()
        write_atomic(self._path, text)
        # not zeros, for which some file systems allocate no space
        write_atomic(self._reserve, os.urandom(len(text) + _SPARE_BYTES))

    def _text(self) -> str:
        fields = json.dumps(self._fields, indent=2)
        if not self._described:
            return fields + "\n"
        return f"{fields[:-2]},{self._described[1:]}\n"


def read_manifest(run_dir: Path) -> JsonObject:
    """The manifest as stored in the file; empty if the file does not exist.

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
        manifest = decode(content)
        check_manifest(manifest)
        return manifest
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}; delete it to continue without it") from None


def settled(manifest: Mapping[str, Any], run_dir: Path) -> JsonObject:
    """The manifest with the run's actual state: interrupted if no process writes it any more.

    Parameters
    ----------
    manifest : mapping
        As stored in the file.
    run_dir : Path
        The run directory.
    """
    if manifest.get("state") != "running" or is_claimed(run_dir):
        return dict(manifest)
    return _ended(manifest, run_dir, "interrupted", KILLED)


def settle(run_dir: Path, state: str = "interrupted", error: str = KILLED) -> JsonObject | None:
    """Write the end of a run whose process could not write it.

    Parameters
    ----------
    run_dir : Path
        The run directory.
    state : str
        ``interrupted`` or ``failed``.
    error : str
        Why it ended.

    Returns
    -------
    dict or None
        The new manifest; None if nothing was changed: the run is in progress, or wrote its end.
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


def _ended(manifest: Mapping[str, Any], run_dir: Path, state: str, error: str) -> JsonObject:
    return {**manifest, "state": state, "error": error, "rounds": last_round(run_dir / ROUNDS)}
