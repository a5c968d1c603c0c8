"""How far two models, or two sets of scores, are apart, array by array.

One norm over a whole model is blind: an array of large numbers hides all others. So each array is
measured by itself, relative to its own norm, and the worst one counts. Arrays whose values are
nothing but roundings must not count as apart, for which there are two floors beside the relative
measure:

- what was added up: 16 machine epsilons of the largest mean step of any array in the round;
- what roundings become: the same round once more from a start that differs by an epsilon. A bias
  that a softmax takes away again has a gradient of roundings only, and Adam divides it by its own
  size: no floor that is counted in epsilons holds for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from flsimulation.events import Scores

Model: TypeAlias = Mapping[str, np.ndarray]

_ROUNDINGS = 16
_ROOM = 4  # times what one other start by roundings makes of a number
_SCORE = 8 * float(np.finfo(np.float32).eps)  # of a mean of terms of about 1


def arrays_apart(
    one: Model | None,
    other: Model | None,
    tolerance: float,
    start: Model | None = None,
    noise: Model | None = None,
) -> dict[str, float]:
    """Relative difference of each array; infinite where names, shapes or infinities differ.

    Parameters
    ----------
    one, other : mapping of ndarray
        Two models.
    tolerance : float
        The relative difference up to which they agree; the floors are added to it.
    start : mapping of ndarray, optional
        The model from which both were trained; without it nothing is known of the steps.
    noise : mapping of ndarray, optional
        By how much roundings of the start change each number.
    """
    if one is None or other is None:
        return {"": float("inf")}
    step = _step(one, start or {})
    return {
        name: _apart(
            one.get(name), other.get(name), tolerance, (start or {}).get(name), noise, name, step
        )
        for name in {**one, **other}
    }


def scores_apart(one: Scores | None, other: Scores | None, noise: Scores | None = None) -> float:
    """Largest relative difference of any score, of what exceeds the roundings of a mean."""
    one, other = one or {}, other or {}
    if one.keys() != other.keys():
        return float("inf")
    floors = {name: _SCORE + _ROOM * (noise or {}).get(name, 0.0) for name in one}
    return max((_relative(one[n], other[n], floors[n]) for n in one), default=0.0)


def worst(apart: Mapping[str, float]) -> tuple[str, float]:
    """Name and difference of the array that differs most."""
    return max(apart.items(), key=lambda item: item[1], default=("", 0.0))


def _relative(one: float, other: float, floor: float) -> float:
    if one == other or (np.isnan(one) and np.isnan(other)):
        return 0.0
    if not (np.isfinite(one) and np.isfinite(other)):
        return float("inf")
    return float(max(0.0, abs(one - other) - floor) / max(abs(one), abs(other)))


def _step(one: Model, start: Model) -> float:
    """The largest root mean square by which an array moved from its start."""
    moved = [
        _rms(_finite(value.astype(float) - start[name].astype(float)))
        for name, value in one.items()
        if name in start and value.shape == start[name].shape and value.dtype.kind == "f"
    ]
    return max(moved, default=0.0)


def _apart(
    one: np.ndarray | None,
    other: np.ndarray | None,
    tolerance: float,
    start: np.ndarray | None,
    noise: Model | None,
    name: str,
    step: float,
) -> float:
    if one is None or other is None or one.shape != other.shape:
        return float("inf")
    ours, theirs = one.astype(float), other.astype(float)
    if np.array_equal(ours, theirs, equal_nan=True):
        return 0.0
    sound = np.isfinite(ours) & np.isfinite(theirs)
    if not np.array_equal(ours[~sound], theirs[~sound], equal_nan=True):
        return float("inf")
    size = _finite(ours)
    differ = np.abs(size - np.where(sound, theirs, size))
    if noise is not None and name in noise:
        differ = np.maximum(0.0, differ - _allowed(noise[name], tolerance * _rms(size)))
    eps = float(np.finfo(one.dtype).eps) if one.dtype.kind == "f" else 0.0
    floor = _ROUNDINGS * eps * step / tolerance
    if start is not None and _is_kept(start, one, other):  # number by number: none may hide another
        return float(np.max(_ratio(differ, np.abs(size) + floor), initial=0.0))
    length = float(np.linalg.norm(size)) + floor * float(np.sqrt(size.size))
    return float(_ratio(np.linalg.norm(differ), np.asarray(length)))


def _is_kept(start: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    return any(
        np.array_equal(start, end, equal_nan=start.dtype.kind == "f") for end in (one, other)
    )


def _allowed(noise: np.ndarray, small: float) -> np.ndarray:
    """What a number may differ by; those that roundings move far share the largest of theirs."""
    noise = _finite(noise)
    return _ROOM * np.where(noise > small, np.max(noise, initial=0.0), noise)


def _ratio(differ: np.ndarray | np.floating, size: np.ndarray) -> np.ndarray:
    """``differ / size``, 0 where nothing differs and infinite where only the size is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(differ == 0, 0.0, differ / size)


def _finite(values: np.ndarray) -> np.ndarray:
    values = values.astype(float)
    return np.where(np.isfinite(values), values, 0.0)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0
