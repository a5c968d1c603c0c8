"""Mean and variance of numbers that lie in several places, from what each place reports of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Reported(BaseModel):
    """What may travel between a site and the server: frozen, strictly typed, without NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_LARGEST = 1e100  # of numbers: float32 ends at 3e38, and squares of all sites' must stay finite


_ROUNDING = 1e-12  # of a mean: what equal numbers seem to deviate from it


class Moments(Reported):
    """Count, mean and sum of squared deviations of some numbers: as much as their sum and that of
    their squares, without the cancellation.

    Source of the formula: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979.
    """

    count: int = Field(default=0, ge=0, lt=2**31)
    mean: float = Field(default=0.0, ge=-_LARGEST, le=_LARGEST)
    squares: float = Field(default=0.0, ge=0, le=4 * _LARGEST**2 * 2**31)
    """Sum of squared deviations from the mean."""

    @classmethod
    def of(cls, numbers: np.ndarray) -> Moments:
        """Moments of numbers, float [n], of which NaN are missing."""
        present = numbers[~np.isnan(numbers)].astype(np.float64)
        if not len(present):
            return cls()
        mean = float(present.mean())
        return cls(count=len(present), mean=mean, squares=float(np.square(present - mean).sum()))

    def merged(self, other: Moments) -> Moments:
        """Moments of both together."""
        if not self.count or not other.count:
            return self if self.count else other
        count, apart = self.count + other.count, other.mean - self.mean
        return Moments.model_construct(  # without the bounds of a single site's
            count=count,
            mean=self.mean + apart * other.count / count,
            squares=self.squares + other.squares + apart**2 * self.count * other.count / count,
        )

    def with_missing(self, missing: int) -> Moments:
        """Moments after this many missing numbers are replaced by the mean."""
        return self.model_copy(update={"count": self.count + missing})

    @property
    def deviation(self) -> float:
        """Standard deviation (of the population); 1 where all numbers are equal."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > _ROUNDING * abs(self.mean) else 1.0


def together(parts: Iterable[Moments]) -> Moments:
    """Moments of all parts together, added in their order."""
    return functools.reduce(Moments.merged, parts, Moments())
