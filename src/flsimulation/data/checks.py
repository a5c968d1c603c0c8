"""Inputs that no model can be trained on: missing and infinite numbers, and columns that say nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from flsimulation.data.refusal import counted, refusal
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_LARGE = 100  # numbers as large as this make the first steps of a network large
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
        raise _refusal(spec, wrong, name, columns, "missing (NaN) number", "fill or remove them")
    if wrong := _first(array, np.isinf):
        raise _refusal(
            spec,
            wrong,
            name,
            columns,
            "infinite (or, for float32, too large) number",
            "correct them",
        )


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


def large_columns(x: torch.Tensor, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Note for people that columns of a table, [n, columns], are far from 0 and not scaled."""
    if not columns or x.ndim != 2:
        return ()
    highest = x.abs().amax(dim=0)
    large = (highest >= _LARGE).nonzero()[:, 0].tolist()
    if not large:
        return ()
    worst = int(highest.argmax())
    more = f" ({len(large)} columns reach {_LARGE} or more)" if len(large) > 1 else ""
    return (
        f"inputs reach {highest[worst].item():,.0f} in column {columns[worst]!r}{more} and are not scaled "
        f"(data.standardize = true does it)",
    )


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
    return refusal(
        spec, f"{name} has {counted(count, kind)}, the first ({value:g}) at {place}; {remedy}"
    )
