"""Real numbers as numbers modulo 2^32, whose sum over many clients is exact.

Secure aggregation adds in the ring of 32-bit integers. Each client rounds the entries of its update to
whole steps, up or down at random so that the result is right on average (stochastic rounding; Gupta et
al., "Deep Learning with Limited Numerical Precision", ICML 2015). The step is as small as the sum of all
clients' largest entries allows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from flsimulation.experiment.spec import Privacy

_MOST = 2**31 - 1  # the largest signed number of 32 bits


def weighs_clients(spec: Privacy) -> bool:
    """Whether updates are clipped, so that all clients weigh the same in the mean."""
    return spec.mode == "central"


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

    @classmethod
    def of(cls, spec: Privacy, clients: int) -> Field:
        """The field of an experiment: of numbers up to the clipping norm, if updates are clipped."""
        return cls(spec.clip if weighs_clients(spec) else spec.largest_change, clients)

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

    def room(self, entries: int) -> float:
        """What is left of a clipped vector, so that with its rounding it is no longer than before.

        Rounding moves each of the entries by less than a step, and so the vector by less than a step
        times their number's square root; the sensitivity of the sum stays the clipping norm.

        Parameters
        ----------
        entries : int
            Length of the vector.

        Raises
        ------
        ValueError
            If nothing is left.
        """
        left = 1 - self.step * math.sqrt(entries) / self.largest
        if left <= 0:
            raise ValueError(
                f"{self.clients} clients are too many for {entries:,} numbers of 32 bits"
            )
        return left

    def decoded(self, total: np.ndarray) -> np.ndarray:
        """The sum of values, float64 [entries], of the sum of their encodings, uint32 [entries]."""
        return total.astype(np.uint32).view(np.int32) * self.step
