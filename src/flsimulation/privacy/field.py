"""Real numbers as numbers modulo 2^32, whose sum over many clients is exact.

Secure aggregation adds in the ring of 32-bit integers. Each client rounds the entries of its update to
whole steps, up or down at random so that the result is right on average (stochastic rounding; Gupta et
al., "Deep Learning with Limited Numerical Precision", ICML 2015). The step is as small as the sum of all
clients' largest entries allows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_MOST = 2**31 - 1  # the largest signed number of 32 bits


class Encoded(NamedTuple):
    """An encoded vector."""

    words: np.ndarray
    """Numbers modulo 2^32, uint32 [entries]."""
    cut: int
    """Entries that were beyond the range, and were cut to it."""


class Field(NamedTuple):
    """How real numbers are written as numbers modulo 2^32.

    Parameters
    ----------
    largest : float
        The largest absolute value of an entry; a larger one is cut to it.
    clients : int
        The most clients whose vectors are added.
    """

    largest: float
    clients: int

    @property
    def step(self) -> float:
        """The difference between two neighbouring numbers; no entry of a client is off by more."""
        return self.largest / (_MOST // self.clients - 1)  # one less, for the rounding

    def encoded(
        self, values: np.ndarray, draws: np.random.Generator, weight: float = 1.0
    ) -> Encoded:
        """The values times a weight in whole steps, each rounded up or down at random.

        Parameters
        ----------
        values : ndarray
            Finite real numbers, [entries].
        draws : Generator
            The stream of the rounding.
        weight : float
            At most 1.
        """
        cut = int(np.count_nonzero(np.abs(values) > self.largest))
        steps = np.clip(values, -self.largest, self.largest) * (weight / self.step)
        whole = np.floor(steps + draws.random(len(steps))).astype(np.int64)
        return Encoded(whole.astype(np.uint32), cut)

    def decoded(self, total: np.ndarray) -> np.ndarray:
        """The sum of values, float64 [entries], of the sum of their encodings, uint32 [entries]."""
        return total.astype(np.uint32).view(np.int32) * self.step
