"""From the arrays of any source to a `Dataset`: images scaled, labels numbered, a test set split off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from flsimulation import seeds
from flsimulation.data.checks import check_finite, constant_columns, large_columns
from flsimulation.data.dataset import Column, Dataset
from flsimulation.data.refusal import counted
from flsimulation.data.refusal import refusal as refusal
from flsimulation.data.scaling import fill, standardize
from flsimulation.data.targets import make_targets, shortened
from flsimulation.data.task import About, Form
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


class Inputs(NamedTuple):
    """What a source knows of its inputs, and what it calls them."""

    train: str = "inputs"
    """Name of the training inputs in errors."""
    test: str = "test inputs"
    columns: tuple[Column, ...] = ()
    """Columns of a table, in order; each is `Column.width` inputs."""
    notes: tuple[str, ...] = ()
    """Lines for people: how the file was read."""
    tokens: bool = False
    """Whether integers that are not bytes stay integers whatever their shape."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each input of a table."""
        return tuple(column.name for column in self.columns for _ in range(column.width))

    @property
    def numeric(self) -> np.ndarray:
        """Whether each input of a table is a number, bool [inputs]."""
        return np.array([c.kind != "category" for c in self.columns for _ in range(c.width)])


class Parts(NamedTuple):
    """What a source holds, before it is a data set."""

    spec: Data
    train: Examples
    test: Examples | None
    classes: tuple[str, ...] = ()
    """Names of the classes, where the source has them."""
    about: About = About()
    origin: Inputs = Inputs()

    def assembled(self, seed: int) -> Dataset:
        """The data set, as `assemble` makes it."""
        return assemble(
            self.spec, seed, self.train, self.test, self.classes, self.about, self.origin
        )


def assemble(
    spec: Data,
    seed: int,
    train: Examples,
    test: Examples | None = None,
    classes: Sequence[str] = (),
    about: About | None = None,
    origin: Inputs | None = None,
) -> Dataset:
    """Make the data set of what a source holds.

    Without ``test``, ``data.test-fraction`` of the examples become the test set. Labels are
    numbers or names of ``classes``, or what ``data.task`` says.

    Parameters
    ----------
    about : About
        What the source knows of its labels.
    origin : Inputs
        What the source knows of its inputs.
    """
    about = (about or About())._replace(classes=tuple(classes))
    origin = origin or Inputs()
    _check_lengths(spec, train)
    train, test, dropped = _complete(spec, train, test, origin)
    if test is None:
        train, test = (train.take(rows) for rows in split_rows(spec, seed, len(train.y)))
    _check_lengths(spec, test)
    form = Form(train.x.shape, train.x.dtype.kind in "iu")
    targets = make_targets(spec, train.y, test.y, form, about)
    x_train, x_test, notes = _prepared(spec, train.x, test.x, origin)
    return Dataset(
        spec.dataset, x_train, targets.train, x_test, targets.test, targets.classes, train.owners,
        targets.task, origin.columns,
        (*origin.notes, *dropped, *targets.notes, *notes, *owners_note(spec, train.owners)),
    )  # fmt: skip


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


def inputs(spec: Data, array: np.ndarray, tokens: bool = False) -> torch.Tensor:
    """Convert inputs to float32, images of bytes to 0..1 with the channels first, tokens to int64.

    ``[n, h, w]`` becomes ``[n, 1, h, w]``, ``[n, h, w, 3]`` becomes ``[n, 3, h, w]``. Integers
    ``[n]`` and ``[n, length]`` are tokens, with ``tokens`` also integers of any other shape that
    are not bytes.
    """
    if array.dtype.kind not in "buif":
        raise refusal(
            spec, f"inputs must be numbers of one shape, got {array.dtype}; check data.image-column"
        )
    if array.dtype.kind in "iu" and (array.ndim < 3 or (tokens and array.dtype != np.uint8)):
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what is too large is found and named afterwards
            return torch.from_numpy(array.astype(np.float32, order="C"))
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] in _CHANNELS:
        array = np.moveaxis(array, -1, 1)
    pixels = np.require(array, requirements=["C", "W"])  # PyTorch warns of what it cannot write to
    return torch.from_numpy(pixels).to(torch.float32).div_(255)


def _complete(
    spec: Data, train: Examples, test: Examples | None, origin: Inputs
) -> tuple[Examples, Examples | None, tuple[str, ...]]:
    """Leave out rows with missing numbers where ``data.fill`` says so; refuse what cannot be used."""
    parts = [train] if test is None else [train, test]
    kept = []
    for part, name in zip(parts, (origin.train, origin.test), strict=False):
        fillable = part.x.ndim == 2 and spec.fill != "refuse"
        check_finite(spec, part.x, name, origin.names, missing=not fillable)
        if spec.fill == "drop" and fillable and part.x.dtype.kind == "f":
            part = part.take(np.flatnonzero(~np.isnan(part.x).any(axis=1)))
            if not len(part.y):
                raise refusal(
                    spec, f"data.fill 'drop' leaves no row of {name}: each has a missing number; "
                    f"use 'mean', 'median' or 'zero', or choose columns by data.input-columns"
                )  # fmt: skip
        kept.append(part)
    left = sum(len(part.y) for part in parts) - sum(len(part.y) for part in kept)
    note = f"{counted(left, 'row')} with missing numbers left out (data.fill drop)"
    return kept[0], None if test is None else kept[1], (note,) if left else ()


def _prepared(
    spec: Data, train: np.ndarray, test: np.ndarray, origin: Inputs
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    notes: list[str] = []
    train, test = _alike(train, test)
    flat = train.ndim == 2 and train.dtype.kind == "f"
    if flat and train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{spec.dataset}: training inputs have shape {train.shape[1:]}, test inputs "
            f"{test.shape[1:]}; give them one shape"
        )
    if flat and spec.fill in ("mean", "median", "zero"):
        train, test = train.copy(), test.astype(train.dtype)
        if count := fill(spec, train, test, origin.names):
            notes.append(
                f"inputs: {counted(count, 'missing number')} filled (data.fill {spec.fill})"
            )
    x_train, x_test = (inputs(spec, part, origin.tokens) for part in (train, test))
    for x, name in ((x_train, origin.train), (x_test, origin.test)):
        if train.dtype.itemsize > 4:
            check_finite(spec, x.numpy(), f"{name} as float32", origin.names)
    notes += constant_columns(x_train, origin.names) if flat else ()
    if spec.standardize:
        x_train, x_test = standardized(spec, x_train, x_test, origin)
    elif origin.columns:
        notes += large_columns(x_train, origin.names)
    if not x_train.is_floating_point():
        notes.append(
            f"inputs: integers {_reach(x_train, x_test)} stay integers (tokens); save numbers as floats"
        )
    return x_train, x_test, tuple(notes)


def _alike(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers as floats where the other part has floats: they are numbers then, no tokens."""
    if {train.dtype.kind, test.dtype.kind} & {"f"} and max(train.ndim, test.ndim) < 3:
        parts = (p.astype(np.float64) if p.dtype.kind in "biu" else p for p in (train, test))
        train, test = parts
    return train, test


def _reach(train: torch.Tensor, test: torch.Tensor) -> str:
    parts = [part for part in (train, test) if part.numel()]
    low, high = min(part.min() for part in parts), max(part.max() for part in parts)
    return f"{int(low)} to {int(high)}"


def standardized(
    spec: Data, train: torch.Tensor, test: torch.Tensor, origin: Inputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale numeric columns as ``data.standardize`` says. Raises `DataError` for other inputs."""
    if train.ndim != 2 or not train.is_floating_point():
        kind = str(train.dtype).removeprefix("torch.")
        raise DataError(
            f"data.standardize scales columns of numbers, but {spec.dataset} has {kind} inputs of "
            f"shape {list(train.shape[1:])}; remove it"
        )
    numeric = origin.numeric if origin.columns else np.ones(train.shape[1], bool)
    scaled = standardize(train.numpy(), test.numpy(), numeric)
    return torch.from_numpy(scaled[0]), torch.from_numpy(scaled[1])


def owners_note(spec: Data, owners: np.ndarray | None) -> tuple[str, ...]:
    """Note for people which natural client has which number."""
    if owners is None or spec.partition != "natural" or spec.dataset == "synthetic":
        return ()
    names = tuple(str(name) for name in np.unique(owners))
    return (f"clients: {len(names)} in this order: {shortened(names)}",)


def _check_lengths(spec: Data, part: Examples) -> None:
    if part.x.ndim == 0 or part.y.ndim == 0:
        raise refusal(spec, "inputs and labels must have one entry an example, got one number")
    if len(part.x) != len(part.y):
        raise refusal(spec, f"it has {len(part.x)} inputs but {len(part.y)} labels")
    if not len(part.y):
        raise refusal(spec, "it has no examples; add some")
    if part.owners is not None and len(part.owners) != len(part.y):
        raise refusal(spec, f"it has {len(part.owners)} owners but {len(part.y)} labels")
