"""What a data set's inputs are, column by column."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from flsimulation.data.dataset import Column, Dataset
from flsimulation.data.leaves import first


class Described(NamedTuple):
    """An input column of a table over training and test set."""

    name: str
    kind: str
    """As in `Column.kind`."""
    missing: int
    """Cells that were missing in the training file."""
    distinct: int
    """Distinct numbers, or categories."""
    minimum: float | None
    """Smallest number as the model receives it; None for categories."""
    maximum: float | None
    """Largest number as the model receives it; None for categories."""


def describe(dataset: Dataset) -> list[Described]:
    """Describe the input columns; those of arrays [n, columns] have their number as name.

    Returns
    -------
    list of Described
        In the order of the inputs; empty for images and other inputs without columns.
    """
    x, x_test = first(dataset.x_train), first(dataset.x_test)
    if x.ndim != 2 or isinstance(dataset.x_train, dict):
        return []
    kind = "number" if x.is_floating_point() else "integer"
    columns = dataset.columns or tuple(Column(str(i), kind) for i in range(x.shape[1]))
    described, start = [], 0
    for column in columns:
        cells = [part[:, start : start + column.width] for part in (x, x_test)]
        described.append(_described(column, torch.cat(cells)))
        start += column.width
    return described


def _described(column: Column, cells: torch.Tensor) -> Described:
    if column.kind == "category":
        return Described(column.name, column.kind, column.missing, column.width, None, None)
    low, high = cells.min().item(), cells.max().item()
    distinct = len(np.unique(cells.numpy()))
    return Described(column.name, column.kind, column.missing, distinct, low, high)
