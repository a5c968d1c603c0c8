"""Reading a run directory, as far as the run got: a killed run leaves a part of it."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from flsimulation.errors import InputError
from flsimulation.rundir.manifest import settled

Record: TypeAlias = dict[str, Any]
"""One JSON object of the run directory."""


@dataclass(frozen=True)
class RunLog:
    """What a run directory holds."""

    path: Path
    """The run directory."""
    manifest: Record
    """manifest.json; empty where the run did not get as far."""
    toml: str
    """experiment.toml as written; empty where it is missing."""
    settings: Record
    """experiment.toml as tables; empty where it is missing or no TOML."""
    rounds: tuple[Record, ...]
    """Lines of rounds.jsonl by round; of a round that was repeated after a resume, the newest."""
    scores: tuple[Record, ...]
    """The newest evaluation of the clients, by partition: lines of phase ``final``, or of
    ``evaluate`` in the last finished round that has any."""
    failures: tuple[Record, ...]
    """The lines of clients.jsonl that have a ``reason``, as they came."""


def look(record: object, *keys: str) -> Any:
    """Take the value under ``keys``, or None where any step of the way is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def number(record: object, *keys: str) -> float | None:
    """Take the finite number under ``keys``, or None."""
    value = look(record, *keys)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def read_run(path: str | Path) -> RunLog:
    """Read a run directory; files may be missing, and the last line of a ``.jsonl`` cut short.

    Parameters
    ----------
    path : str or Path
        The run directory.

    Raises
    ------
    InputError
        Where ``path`` is no run directory, or a file in it is damaged: file and line are named.
    """
    path = Path(path)
    if not any((path / name).is_file() for name in ("experiment.toml", "manifest.json")):
        raise InputError(
            f"{path}: no run directory; give one that holds experiment.toml or manifest.json"
        )
    toml = (_read(path / "experiment.toml") or b"").decode(errors="replace")
    rounds = {record["round"]: record for record in _lines(path / "rounds.jsonl", "round")}
    scores, failures = _clients(path / "clients.jsonl", last_round=max(rounds, default=0))
    ordered = tuple(rounds[key] for key in sorted(rounds))
    manifest = _manifest(path / "manifest.json")
    return RunLog(path, manifest, toml, _settings(toml), ordered, scores, failures)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _manifest(path: Path) -> Record:
    content = _read(path)
    if content is None:
        return {}
    try:
        return settled(_object(content), path.parent)
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}; delete it to report without it") from None


def _settings(toml: str) -> Record:
    """Only its names are shown, so an experiment that no longer parses is no reason to stop."""
    try:
        return tomllib.loads(toml)
    except tomllib.TOMLDecodeError:
        return {}


def _object(content: bytes) -> Record:
    value = json.loads(content.decode())
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {type(value).__name__}")
    return value


def _lines(path: Path, *keys: str) -> Iterator[Record]:
    """Yield the records that have whole numbers under ``keys``; a last line cut short is left out."""
    lines = (_read(path) or b"").rstrip(b"\0\r\n").split(b"\n")
    for count, line in enumerate(lines, start=1):
        try:
            if line.strip():
                yield _record(line, keys)
        except ValueError as error:
            if count < len(lines):
                raise InputError(
                    f"{path}:{count}: damaged: {error}; delete the line to report without it"
                ) from None


def _record(line: bytes, keys: tuple[str, ...]) -> Record:
    record = _object(line)
    for key in keys:
        if not isinstance(record.get(key), int):
            raise ValueError(f"{key} must be a whole number, got {record.get(key)!r}")
    return record


def _clients(path: Path, last_round: int) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Scores and failures; the other lines are let go, for there may be a million of them.

    A round that was killed half-way has the evaluations of some clients only, hence ``last_round``.
    """
    newest = (0, False)
    scores: dict[int, Record] = {}
    failures: dict[tuple[int, str, int], Record] = {}
    for record in _lines(path, "round", "partition"):
        phase, turn = record.get("phase"), record["round"]
        key = (turn, str(phase), record["partition"])
        failures.pop(key, None)  # a round that is repeated after a resume may go well
        if record.get("reason"):
            failures[key] = record
        elif phase in ("evaluate", "final") and turn <= last_round:
            rank = (turn, phase == "final")
            if rank > newest:
                newest, scores = rank, {}
            if rank == newest:
                scores[record["partition"]] = record
    return tuple(scores[key] for key in sorted(scores)), tuple(failures.values())
