"""Models as Flower's records, which are not serialised as long as they stay in this process."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from flsimulation.internals.flower_messages import NUMPY


class HeldArray(Array):
    """A Flower array that holds its values and serialises them only when its bytes are requested.

    For messages within one process. The values must not change: many messages may share them.

    Parameters
    ----------
    values : ndarray
        The values; not copied.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.dtype, self.shape = _name(values.dtype), tuple(values.shape)
        self.stype = NUMPY
        self._values = values

    def numpy(self) -> np.ndarray:
        """The values, not copied; they must not be changed."""
        return self._values

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The values as ``numpy.save`` writes them."""
        return Array.from_numpy_ndarray(self._values).data

    @property
    def size(self) -> int:
        """Size of `data` in bytes, without serialising it."""
        return _header_bytes(self.dtype, self.shape) + self._values.nbytes


def joined(arrays: Mapping[str, Array]) -> ArrayRecord:
    """A record of these arrays, without the copies that ``ArrayRecord`` makes."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def size_of(record: Any) -> int:
    """Size of a Flower record in bytes, as its ``count_bytes`` returns it."""
    if not isinstance(record, ArrayRecord):
        return int(record.count_bytes())
    return sum(
        len(name) + (array.size if isinstance(array, HeldArray) else len(array.data))
        for name, array in record.items()
    )


@functools.lru_cache(maxsize=64)
def _name(kind: np.dtype[Any]) -> str:
    """Name of a type; NumPy builds it in each call, which takes microseconds."""
    return str(kind)


@functools.lru_cache(maxsize=4096)
def _header_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that ``numpy.save`` writes before the values."""
    file = io.BytesIO()
    kind = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()
