"""What is computed of the training examples and applied to all: ``data.fill``, ``data.standardize``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_CENTRES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda x: np.nanmean(x, axis=0),
    "median": lambda x: np.nanmedian(x, axis=0),
    "zero": lambda x: np.zeros(x.shape[1]),
}


def fill(spec: Data, train: np.ndarray, test: np.ndarray, names: tuple[str, ...]) -> int:
    """Replace NaN in inputs, [n, columns] each, as ``data.fill`` says; in place.

    Returns
    -------
    int
        How many were replaced.

    Raises
    ------
    DataError
        If a column has no number among the training examples.
    """
    count = int(np.isnan(train).sum() + np.isnan(test).sum())
    if count == 0:
        return 0
    empty = np.flatnonzero(np.isnan(train).all(axis=0))
    if len(empty):
        raise DataError(
            f"data.fill {spec.fill!r}: column {_name(names, int(empty[0]))} has no number among the "
            f"training examples; leave it out by data.input-columns"
        )
    centre = _CENTRES[spec.fill](train)
    for part in (train, test):
        rows, columns = np.nonzero(np.isnan(part))
        part[rows, columns] = centre[columns]
    return count


def standardize(
    train: np.ndarray, test: np.ndarray, numeric: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scale the numeric columns of inputs, float [n, columns], by the training examples' moments.

    Parameters
    ----------
    numeric : np.ndarray
        Whether each column is scaled, bool [columns]. A column with one value is centred only.
    """
    mean = np.where(numeric, train.mean(axis=0, dtype=np.float64), 0.0)
    deviation = np.where(numeric, train.std(axis=0, dtype=np.float64), 1.0)
    constant = (train == train[:1]).all(axis=0)
    deviation[constant | (deviation == 0)] = 1.0
    scaled = ((part - mean) / deviation for part in (train, test))
    first, second = (part.astype(np.float32) for part in scaled)
    return first, second


def _name(names: tuple[str, ...], column: int) -> str:
    return repr(names[column]) if names else str(column)
