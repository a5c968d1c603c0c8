"""IDX, the file format of MNIST: a type, a shape, then the numbers, big-endian, row by row."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from flsimulation.errors import DataError

_GZIP = b"\x1f\x8b"
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Third byte of the file -> NumPy dtype of its numbers."""


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file, gzipped or not.

    Returns
    -------
    np.ndarray
        The array in this machine's byte order; read-only for one-byte types.

    Raises
    ------
    DataError
        If the file cannot be read, is no IDX file, or is cut short.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    return parse_idx(content, str(path))


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Array of an IDX file's bytes; ``name`` is what errors call it. Else like `read_idx`."""
    if content.startswith(_GZIP):
        content = _decompress(content, name)
    dtype, shape = _header(content, name)
    start, count = 4 + 4 * len(shape), math.prod(shape)
    if len(content) != (size := start + count * dtype.itemsize):
        raise DataError(
            f"{name}: an IDX file of shape {shape} has {size} bytes, got {len(content)}; "
            f"fetch the file again"
        )
    array = np.frombuffer(content, dtype, count, start).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _decompress(content: bytes, name: str) -> bytes:
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{name}: a damaged gzip file: {error}; fetch the file again") from None


def _header(content: bytes, name: str) -> tuple[np.dtype, tuple[int, ...]]:
    magic = content[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise DataError(f"{name}: not an IDX file: it begins with {magic.hex(' ') or 'nothing'}")
    if len(content) < 4 + 4 * magic[3]:
        raise DataError(f"{name}: an IDX file that ends in its header; fetch the file again")
    shape = np.frombuffer(content, ">u4", magic[3], 4).tolist()
    return np.dtype(_DTYPES[magic[2]]), tuple(shape)
