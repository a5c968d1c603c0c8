"""Batches of one client, in an order that only the seed, the round and the client decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flsimulation.data.leaves import Leaves, each, first, one
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.transforms import Draws, Transform


class Batches:
    """The batches of one fit or one evaluation; each iteration is one epoch.

    Lightning takes it as a data loader. Batches are gathered straight from the shared tensors,
    so that no client's data is copied as a whole.

    Parameters
    ----------
    x, y : Tensor or dict of Tensor
        The data set's inputs and targets, [n, ...].
    indices : int64 [m]
        The client's examples.
    size : int
        Examples a batch; the last one may be smaller.
    rng : callable, optional
        Returns the generator that shuffles every epoch; called when first needed. Without it
        the order is that of ``indices``.
    seed : callable, optional
        Returns the seed of what a transform draws; called when first needed.
    prepared : Preparation
        How the batches are prepared for the module.
    """

    def __init__(
        self,
        x: Leaves,
        y: Leaves,
        indices: np.ndarray,
        size: int,
        rng: Callable[[], np.random.Generator] | None = None,
        seed: Callable[[], int] = int,
        *,
        prepared: Preparation = PLAIN,
    ) -> None:
        self._x, self._y, self._prepared = x, y, prepared
        self._indices = indices
        self._size = size
        self._rng = rng
        self._generator: np.random.Generator | None = None
        self._transform = prepared.evaluation if rng is None else prepared.transform
        self._seed = seed
        self._draws: Draws | None = None

    @property
    def parts(self) -> tuple[Any, ...]:
        """What these are made of beside the data set, in the order of the parameters."""
        return self._indices, self._size, self._rng, self._seed

    def again(self) -> Batches:
        """The same batches from their start: what is shuffled and drawn begins anew."""
        return Batches(self._x, self._y, *self.parts, prepared=self._prepared)

    def seeded(self, seed: int) -> Batches:
        """The same batches from their start, with another seed of what a transform draws."""
        indices, size, rng, _ = self.parts
        return Batches(self._x, self._y, indices, size, rng, lambda: seed, prepared=self._prepared)

    @property
    def transform(self) -> Transform | None:
        """What changes these batches."""
        return self._transform

    @property
    def examples(self) -> int:
        """Examples in an epoch."""
        return len(self._indices)

    def __len__(self) -> int:
        return -(-len(self._indices) // self._size)

    def __iter__(self) -> Iterator[Any]:
        for rows in self.index_batches():
            yield self._prepared.form.batch(*self.taken(rows))

    def taken(self, rows: np.ndarray) -> tuple[Leaves, Leaves]:
        """Inputs and labels of a batch, transformed; the batches of a fit in their order.

        Raises `ClientError` if the transform fails.
        """
        if self._transform is not None:
            return self._transform(self._x, self._y, rows, self._drawing())
        if self._rng is None and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            batch: Any = slice(int(rows[0]), int(rows[-1]) + 1)  # no copy
        else:
            batch = torch.from_numpy(rows)
        return one(self._x, batch), one(self._y, batch)

    def index_batches(self) -> list[np.ndarray]:
        """Indices of one epoch's batches, int64 [size] each; a new order with each call."""
        order = self._indices
        if self._rng is not None:
            self._generator = self._generator or self._rng()
            order = self._generator.permutation(order)
        return [order[i : i + self._size] for i in range(0, len(order), self._size)]

    def _drawing(self) -> Draws:
        """What the transform draws from: one stream for a fit, the same for each evaluation's batch."""
        if self._rng is None:
            return Draws(0)
        self._draws = self._draws or Draws(self._seed())
        return self._draws


def gathered(parts: Sequence[Leaves], rows: np.ndarray, device: torch.device) -> list[Leaves]:
    """Each part's rows, [clients, batch, ...].

    Parameters
    ----------
    parts : sequence of Tensor or dict of Tensor
        Of the data set, [n, ...]; all on one device.
    rows : int64 [clients, batch]
        Indices of each client's batch.
    device : device
        Where the result shall be.
    """
    index = torch.from_numpy(rows.reshape(-1)).to(first(parts[0]).device)
    return [each(lambda t: t.to(device), part) for part in rows_at(parts, index, rows.shape)]


def rows_at(parts: Sequence[Leaves], index: Tensor, shape: tuple[int, ...]) -> list[Leaves]:
    """Each part's rows, [clients, batch, ...], on the device where the parts are.

    Parameters
    ----------
    parts : sequence of Tensor or dict of Tensor
        Of the data set, [n, ...].
    index : int64 [clients * batch]
        Indices of each client's batch.
    shape : tuple of int
        Clients and batch.
    """

    def taken(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, index).view(*shape, *tensor.shape[1:])

    return [each(taken, part) for part in parts]
