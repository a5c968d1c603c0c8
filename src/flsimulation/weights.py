"""The global model as arrays: its digest and its soundness."""

from __future__ import annotations

import hashlib

import numpy as np
from flwr.app import ArrayRecord


def weights_sha256(arrays: ArrayRecord) -> str:
    """SHA-256 (hex) over all arrays in name order: name, dtype, shape and bytes."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name].numpy())
        sha.update(f"{name} {value.dtype} {value.shape}\n".encode())
        sha.update(value.data)
    return sha.hexdigest()


def first_not_finite(arrays: ArrayRecord) -> str | None:
    """Name of the first array that holds a NaN or an infinity, or None."""
    for name, array in arrays.items():
        value = array.numpy()
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            return str(name)
    return None
