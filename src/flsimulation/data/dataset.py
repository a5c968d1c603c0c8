"""What a data set is here: tensors in memory, read once and shared by all clients of a process."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from flsimulation.data.leaves import Leaves, described, named, shapes
from flsimulation.errors import DataError

if TYPE_CHECKING:
    from flsimulation.data.sites.agree import Agreement


class Column(NamedTuple):
    """An input column of a table."""

    name: str
    kind: str
    """``number``, ``category`` (several inputs, one per category) or ``integer`` (of arrays: tokens)."""
    missing: int = 0
    """Cells that were missing."""
    width: int = 1
    """Number of inputs that it became."""
    names: tuple[str, ...] = ()
    """Names of the categories, in the order of the inputs; empty for numbers."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set.

    Raises `DataError` where the parts do not fit together.
    """

    name: str
    """The name by which the experiment requests it."""
    x_train: Leaves
    """Inputs, float32 [n, ...], int64 for tokens; images are [n, channels, height, width] in 0..1. A
    dict of tensors where there are several inputs."""
    y_train: torch.Tensor
    """Labels: int64 [n] for classes, float32 [n] or [n, ...] for a regression, float32 [n, classes] of
    0 and 1 for several classes, int64 [n, ...] for pixels and tokens."""
    x_test: Leaves
    """Inputs of the test set, like ``x_train``."""
    y_test: torch.Tensor
    """Labels of the test set, like ``y_train``."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, ...; empty where the targets are no classes."""
    owners: np.ndarray | None = field(default=None, repr=False)
    """Natural client of each training example, [n], where the data names one."""
    task: str = "auto"
    """What the labels are, as in ``data.task``; never ``auto`` after `load_dataset`."""
    columns: tuple[Column, ...] = ()
    """Input columns of a table, in the order of the inputs; empty for other data."""
    notes: tuple[str, ...] = ()
    """Lines for people: how the data was understood."""
    agreed: Agreement | None = field(default=None, repr=False)
    """What the sites agreed on, where each client has a data set of its own."""
    has_test: bool = True
    """Whether there is a test set; without one, it has no example."""
    is_placeholder: bool = False
    """Whether the training examples are zeros in the form of the clients' ones, which are elsewhere."""

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            for name, tensor in named(x):
                if len(tensor) != len(y):
                    what = f"{part} inputs" + (f" {name!r}" if name else "")
                    raise DataError(f"{self.name}: {len(tensor)} {what} but {len(y)} labels")
            if len(y) == 0 and (part == "train" or self.has_test):
                raise DataError(f"{self.name}: the {part} set is empty")
        if shapes(self.x_train) != shapes(self.x_test):
            raise DataError(
                f"{self.name}: training inputs have shape {described(self.x_train)}, "
                f"test inputs {described(self.x_test)}"
            )

    def with_notes(self, notes: tuple[str, ...]) -> Dataset:
        """The same data set with further lines for people."""
        return replace(self, notes=(*self.notes, *notes))

    @property
    def labels(self) -> np.ndarray | None:
        """Training labels as int64 [n], or None where the targets are no classes."""
        if self.y_train.ndim != 1 or self.y_train.is_floating_point():
            return None
        return self.y_train.numpy()

    @property
    def test_indices(self) -> np.ndarray:
        """Indices of the whole test set, int64 [n]."""
        return np.arange(len(self.y_test), dtype=np.int64)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all tensors: names, dtypes, shapes and bytes.

        Of sites, whose examples nobody has together, over what they agreed on.
        """
        if self.agreed is not None:
            return self.agreed.digest
        sha = hashlib.sha256()
        for part in ("x_train", "y_train", "x_test", "y_test"):
            for name, tensor in named(getattr(self, part)):
                array = tensor.contiguous().numpy()
                title = f"{part}[{name}]" if name else part
                sha.update(f"{title} {array.dtype} {array.shape}\n".encode())
                sha.update(array.data)
        return sha.hexdigest()
