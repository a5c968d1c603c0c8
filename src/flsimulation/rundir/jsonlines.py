"""Append-only files with one JSON object per line: writing and reading."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from flsimulation.errors import InputError
from flsimulation.host.files import write_atomic
from flsimulation.rundir.shapes import Shapes, check

JsonObject: TypeAlias = dict[str, Any]
"""One JSON object of the run directory."""
_ANY: Shapes = {}
_LARGEST = 4 * 2**30  # bytes of a file that is read whole
_ENCODER = json.JSONEncoder(allow_nan=False)


class JsonLines:
    """A file to which whole lines are appended; numbers that are not finite become null.

    Parameters
    ----------
    path : Path
        The file; an existing one is rewritten with the lines to keep.
    keep : callable
        Whether to keep a line of the existing file.
    """

    def __init__(self, path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
        write_atomic(
            path, "".join(_encode(line) for line in read_lines(path, "round") if keep(line))
        )
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        weakref.finalize(self, os.close, self._file)

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line in one write; if only a part fits, undo it and raise ``OSError``."""
        content, size = _encode(line).encode(), os.fstat(self._file).st_size
        try:
            if os.write(self._file, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file, size)
            raise OSError(error.errno, error.strerror, str(self._path)) from None


def read_lines(path: Path, *keys: str, shapes: Shapes = _ANY) -> Iterator[JsonObject]:
    """The records of a file; none if it does not exist.

    A last line that a crash has truncated is skipped, and so are the zero bytes that some file
    systems leave after it.

    Parameters
    ----------
    path : Path
        The file.
    keys : str
        Keys under which every record must have a whole number.
    shapes : mapping
        What the values of a record must be.

    Raises
    ------
    InputError
        If the file cannot be read, or another line is damaged; the message contains its number.
    """
    lines = _lines(path)
    for count, line in enumerate(lines, start=1):
        try:
            if line.strip():
                record = _record(line, keys)
                check(record, shapes)
                yield record
        except ValueError as error:
            if count < len(lines):
                raise InputError(
                    f"{path}:{count}: damaged: {error}; delete the line to continue without it"
                ) from None


def last_round(path: Path) -> int:
    """The round of the last record that can be read; 0 if there is none."""
    with contextlib.suppress(InputError):
        for line in reversed(_lines(path)):
            with contextlib.suppress(ValueError):
                return int(_record(line, ("round",))["round"])
    return 0


def read_file(path: Path) -> bytes | None:
    """A file's content; None if it does not exist. Raises `InputError` if it cannot be read."""
    try:
        waits_not = os.O_RDONLY | os.O_NONBLOCK  # for the other end of a pipe
        with os.fdopen(os.open(path, waits_not), "rb") as file:
            _check_kind(path, os.fstat(file.fileno()))
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check_kind(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: is not a file; a run directory holds files only")
    if found.st_size > _LARGEST:
        raise InputError(f"{path}: is larger than {_LARGEST / 2**30:g} GiB, and not read")


def decode(content: bytes) -> JsonObject:
    """Parse one JSON object. Raises ``ValueError`` if it is not one."""
    try:
        value = json.loads(content.decode())
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {type(value).__name__}")
    return value


def look(record: object, *keys: str) -> Any:
    """The value under the nested ``keys``; None if any of them is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def number(record: object, *keys: str) -> float | None:
    """The finite number under the nested ``keys``; None if there is none."""
    value = look(record, *keys)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond the range of a float
        return None


def _lines(path: Path) -> list[bytes]:
    return (read_file(path) or b"").rstrip(b"\0\r\n").split(b"\n")


def _record(line: bytes, keys: tuple[str, ...]) -> JsonObject:
    record = decode(line)
    for key in keys:
        if not isinstance(record.get(key), int):
            raise ValueError(f"{key} must be a whole number, got {record.get(key)!r}")
    return record


def _encode(line: Mapping[str, Any]) -> str:
    try:
        return _ENCODER.encode(line) + "\n"
    except ValueError:
        return _ENCODER.encode(_finite(line)) + "\n"


def _finite(value: Any) -> Any:
    """The value with None in place of every NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
