"""The change of a model as one vector, and a model that is changed by one.

The vector has the entries of all arrays of real numbers, parameters and buffers, in the model's order.
Arrays of integers, such as BatchNorm's counter of batches, are no part of it: they stay what they are in
the global model.
"""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord

from flsimulation.messages.arrays import HeldArray, joined

MASKED = "masked"
"""Name of the only array of a masked update, uint32 [entries], which stands in place of a model."""
NEXT = "next-"
"""Before the names of what is sent for the next secure aggregation."""


def entries_of(model: ArrayRecord) -> int:
    """Length of the vector."""
    return sum(model[name].numpy().size for name in _real(model))


def change_of(model: ArrayRecord, before: ArrayRecord) -> np.ndarray:
    """``model`` minus ``before``, float64 [entries]; 0 where ``before`` is not finite, as in a mask."""
    found = [np.zeros(0)]
    for name in _real(before):
        old = before[name].numpy().astype(np.float64).reshape(-1)
        new = model[name].numpy().astype(np.float64).reshape(-1)
        with np.errstate(invalid="ignore"):
            found.append(np.where(np.isfinite(old), new - old, 0.0))
    return np.concatenate(found)


def changed(before: ArrayRecord, change: np.ndarray) -> ArrayRecord:
    """``before`` plus a change, float64 [entries], in its types; an array without change is as it was."""
    found, place = {name: before[name] for name in before}, 0
    for name in _real(before):
        old = before[name].numpy()
        own = change[place : place + old.size].reshape(old.shape)
        place += old.size
        if own.any():
            found[name] = HeldArray((old + own).astype(old.dtype))
    return joined(found)


def _real(model: ArrayRecord) -> list[str]:
    return [name for name in model if np.dtype(model[name].dtype).kind == "f"]
