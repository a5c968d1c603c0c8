"""Files that are whole or absent: written beside their place, then moved into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

Parts: TypeAlias = Sequence[bytes | memoryview]
"""A file's content in pieces, which are written one after the other without a copy."""


def write_atomic(path: str | Path, content: str | bytes | Parts, mode: int | None = None) -> Path:
    """Write ``content`` to ``path``; a reader never sees a part of it, a crash leaves the old file.

    Text is written as UTF-8. The file's mode is that of other new files, unless ``mode`` is given:
    with it, nobody has more permissions at any time. Raises ``OSError``, which names ``path``, where it
    cannot be written.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    parts = [data] if isinstance(data, bytes) else data
    try:
        _write(path, parts, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    return path


def _write(path: Path, parts: Parts, mode: int | None) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask if mode is None else mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
