"""Batches of one client, in an order that only the seed, the round and the client decide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class Batches:
    """The batches of one fit or one evaluation; each iteration is one epoch.

    Lightning takes it as a data loader. Batches are gathered straight from the shared tensors,
    so that no client's data is copied as a whole.

    Parameters
    ----------
    x, y : Tensor
        The data set's inputs and targets, [n, ...].
    indices : int64 [m]
        The client's examples.
    size : int
        Examples a batch; the last one may be smaller.
    rng : numpy Generator, optional
        Shuffles every epoch anew; without it the order is that of ``indices``.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        indices: np.ndarray,
        size: int,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._x, self._y = x, y
        self._indices = indices
        self._size = size
        self._rng = rng

    @property
    def examples(self) -> int:
        """Examples in an epoch."""
        return len(self._indices)

    def __len__(self) -> int:
        return -(-len(self._indices) // self._size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._indices if self._rng is None else self._rng.permutation(self._indices)
        for batch in torch.split(torch.from_numpy(order), self._size):
            yield self._x[batch], self._y[batch]
