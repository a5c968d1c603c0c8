"""From the arrays of any source to a `Dataset`: images scaled, labels numbered, a test set split off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flsimulation import seeds
from flsimulation.data.dataset import Dataset
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_CHANNELS = (1, 3, 4)  # grey, colour, colour with transparency


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs, labels and, where the data names them, natural clients, as a source holds them."""

    x: np.ndarray
    y: np.ndarray
    owners: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Examples:
        """Only these rows."""
        owners = None if self.owners is None else self.owners[rows]
        return Examples(self.x[rows], self.y[rows], owners)


def refusal(spec: Data, problem: str) -> DataError:
    """Make the error that names the data set and says what is wrong with it."""
    return DataError(f"data.dataset {spec.dataset!r}: {problem}")


def assemble(
    spec: Data,
    seed: int,
    train: Examples,
    test: Examples | None = None,
    classes: Sequence[str] = (),
) -> Dataset:
    """Make the data set of what a source holds.

    Without ``test``, ``data.test-fraction`` of the examples become the test set. Labels are
    numbers of ``classes`` already, or are numbered here in sorted order.
    """
    _check_lengths(spec, train)
    if test is None:
        train, test = (train.take(rows) for rows in split_rows(spec, seed, len(train.y)))
    _check_lengths(spec, test)
    y_train, y_test, names = _targets(spec, train.y, test.y, tuple(classes))
    x_train, x_test = inputs(spec, train.x), inputs(spec, test.x)
    return Dataset(spec.dataset, x_train, y_train, x_test, y_test, names, train.owners)


def split_rows(spec: Data, seed: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the test set, each in the order of the source."""
    size = max(1, round(examples * spec.test_fraction))
    if size >= examples:
        raise DataError(
            f"data.test-fraction {spec.test_fraction} leaves no training example of the "
            f"{examples} in {spec.dataset}; lower it, or give more examples"
        )
    order = seeds.rng(seed, "test").permutation(examples)
    return np.sort(order[size:]), np.sort(order[:size])


def inputs(spec: Data, array: np.ndarray) -> torch.Tensor:
    """Convert inputs to float32, and images of bytes to 0..1 with the channels first.

    ``[n, h, w]`` becomes ``[n, 1, h, w]``, ``[n, h, w, 3]`` becomes ``[n, 3, h, w]``.
    """
    if array.dtype.kind not in "buif":
        raise refusal(
            spec, f"inputs must be numbers of one shape, got {array.dtype}; check data.image-column"
        )
    if array.dtype != np.uint8 or array.ndim < 3:
        return torch.from_numpy(array.astype(np.float32, order="C"))
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] in _CHANNELS:
        array = np.moveaxis(array, -1, 1)
    pixels = np.require(array, requirements=["C", "W"])  # PyTorch warns of what it cannot write to
    return torch.from_numpy(pixels).to(torch.float32).div_(255)


def _targets(
    spec: Data, train: np.ndarray, test: np.ndarray, classes: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    if train.shape[1:] != test.shape[1:]:
        raise refusal(
            spec,
            f"training labels have shape {list(train.shape[1:])} each, test labels "
            f"{list(test.shape[1:])}; give them one shape",
        )
    joined = _known(spec, np.concatenate([train, test]))
    if joined.ndim == 2 and joined.shape[1] == 1 and joined.dtype.kind != "f":
        joined = joined[:, 0]
    if joined.dtype.kind == "f":
        joined = joined.astype(np.float32)
    elif classes:
        check_range(spec, joined, len(classes))
        joined = joined.astype(np.int64)
    elif joined.ndim > 1:
        joined = joined.astype(np.int64)
    else:
        values, joined = np.unique(joined, return_inverse=True)
        classes = tuple(str(value) for value in values)
    targets = torch.from_numpy(np.ascontiguousarray(joined))
    return targets[: len(train)].clone(), targets[len(train) :].clone(), classes


def _known(spec: Data, labels: np.ndarray) -> np.ndarray:
    """Refuse labels that are missing or no labels at all."""
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise refusal(spec, f"{int(np.isnan(labels).sum())} labels are missing; fill them")
    if labels.dtype.kind not in "biufU" or (labels.dtype.kind == "U" and labels.ndim > 1):
        raise refusal(
            spec,
            f"labels must be integers, floats or words of one shape, got {labels.dtype}; "
            f"check data.label-column",
        )
    return labels


def check_range(spec: Data, labels: np.ndarray, classes: int) -> None:
    """Refuse labels that are no number of a class."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise refusal(
            spec,
            f"labels must be in 0..{classes - 1}, its classes, got {wrong.flat[0]}; number them so",
        )


def _check_lengths(spec: Data, part: Examples) -> None:
    if part.x.ndim == 0 or part.y.ndim == 0:
        raise refusal(spec, "inputs and labels must have one entry an example, got one number")
    if len(part.x) != len(part.y):
        raise refusal(spec, f"it has {len(part.x)} inputs but {len(part.y)} labels")
    if part.owners is not None and len(part.owners) != len(part.y):
        raise refusal(spec, f"it has {len(part.owners)} owners but {len(part.y)} labels")
