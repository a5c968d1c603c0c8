"""Inputs that no model can be trained on: missing and infinite numbers, and columns that say nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from flsimulation.data.refusal import refusal
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_SHOWN = 5  # names of constant columns in a note


def check_finite(
    spec: Data, array: np.ndarray, name: str, columns: tuple[str, ...] = (), missing: bool = True
) -> None:
    """Refuse NaN and infinity in inputs.

    Parameters
    ----------
    array : np.ndarray
        Inputs, [n, ...].
    name : str
        What the source calls the array.
    columns : tuple of str
        Names of its columns, where it has them.
    missing : bool
        Whether NaN is refused too.

    Raises
    ------
    DataError
        With the number of values, the first one and its place.
    """
    if array.dtype.kind != "f" or _sums(array):
        return
    if missing and (wrong := _first(array, np.isnan)):
        raise _refusal(spec, wrong, name, columns, "missing numbers (NaN)", "fill or remove them")
    if wrong := _first(array, np.isinf):
        raise _refusal(spec, wrong, name, columns, "infinite numbers", "correct them")


def constant_columns(x: torch.Tensor, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Note for people which columns of the inputs, [n, columns], have one value only."""
    if x.ndim != 2 or x.shape[1] < 2 or len(x) < 2:
        return ()
    constant = (x == x[:1]).all(dim=0).nonzero()[:, 0].tolist()
    if not constant:
        return ()
    if len(constant) > _SHOWN:
        return (f"inputs: {len(constant)} of {x.shape[1]} columns have one value only",)
    named = (columns[i] if columns else f"column {i}" for i in constant)
    values = (f"{name} ({x[0, i].item():g})" for name, i in zip(named, constant, strict=True))
    return (f"inputs with one value only: {', '.join(values)}",)


Wrong = tuple[int, tuple[int, ...], float]
"""How many, index of the first, its value."""


def _sums(array: np.ndarray) -> bool:
    """Whether the sum is finite: quickly known, and no NaN or infinity leaves it so."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()))


def _first(array: np.ndarray, test: Callable[[np.ndarray], np.ndarray]) -> Wrong | None:
    places = np.argwhere(test(array))
    if not len(places):
        return None
    index = tuple(int(i) for i in places[0])
    return len(places), index, float(array[index])


def _refusal(
    spec: Data, wrong: Wrong, name: str, columns: tuple[str, ...], kind: str, remedy: str
) -> DataError:
    count, index, value = wrong
    place = f"[{', '.join(map(str, index))}]"
    if columns and len(index) == 2:
        place = f"column {columns[index[1]]!r}, row {index[0] + 1}"
    return refusal(spec, f"{name} has {count:,} {kind}, the first ({value:g}) at {place}; {remedy}")
