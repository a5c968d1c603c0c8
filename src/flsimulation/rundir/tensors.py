"""Arrays as a safetensors file.

The library's function copies all numbers three times. The form is that of
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from flsimulation.host.files import Parts

_ALIGNED = 8  # bytes
KINDS = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
    "complex64": "C64",
}
"""NumPy's types and their names in a safetensors file."""


def tensors_of(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Parts:
    """The parts of a file: a header, and the arrays' own bytes, the largest types first.

    Parameters
    ----------
    arrays : mapping
        The arrays by name, of the types of `KINDS`.
    metadata : mapping, optional
        Texts that the header holds, by name.
    """
    values = {name: _in_order(value) for name, value in arrays.items()}
    order = sorted(values, key=lambda name: (-values[name].itemsize, name))  # all are aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        value = values[name]
        start, end = end, end + value.nbytes
        kind = KINDS[value.dtype.name]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    numbers = [values[name].reshape(-1).view(np.uint8).data for name in order]
    return [len(text).to_bytes(8, "little"), text, *numbers]


def _in_order(value: np.ndarray) -> np.ndarray:
    """The numbers one after the other, each with its lowest byte first; copied only if they are not."""
    value = np.asarray(value, order="C")  # ascontiguousarray turns the shape [] into [1]
    return value.astype(value.dtype.newbyteorder("<"), copy=False)
