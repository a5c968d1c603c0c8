"""Append-only files of one JSON object a line."""

from __future__ import annotations

import errno
import json
import math
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flsimulation.errors import InputError
from flsimulation.host.files import write_atomic

_ENCODER = json.JSONEncoder(allow_nan=False)


class JsonLines:
    """A file that grows by whole lines; numbers that are not finite become null.

    Parameters
    ----------
    path : Path
        The file; made anew from the lines of the old one that are kept.
    keep : callable
        Whether a line of an earlier run stays.
    """

    def __init__(self, path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
        write_atomic(path, "".join(_encode(line) for line in read_lines(path) if keep(line)))
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        weakref.finalize(self, os.close, self._file)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line, in one write; a part of it is taken back, and ``OSError`` raised."""
        content, size = _encode(line).encode(), os.fstat(self._file).st_size
        try:
            if os.write(self._file, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file, size)
            raise OSError(error.errno, error.strerror, str(self._path)) from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; none if it is not there. A cut last line is left out.

    Raises
    ------
    InputError
        If another line is damaged.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [_decode(line, path, number) for number, line in enumerate(whole, start=1)]


def _decode(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("round"), int):
        raise InputError(f"{path}:{number}: is damaged; remove the line, or start a new run")
    return found


def _encode(line: Mapping[str, Any]) -> str:
    try:
        return _ENCODER.encode(line) + "\n"
    except ValueError:
        return _ENCODER.encode(_finite(line)) + "\n"


def _finite(value: Any) -> Any:
    """The value with null for every NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
