"""Append-only files of one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flsimulation.atomic import write_atomic


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
        self._path = path
        write_atomic(path, "".join(_encode(line) for line in read_lines(path) if keep(line)))

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line, in one write."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_encode(line))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; none if it is not there. A cut last line is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _encode(line: Mapping[str, Any]) -> str:
    return json.dumps(_finite(line), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with null for every NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
