"""The error about a data set that cannot be used."""

from __future__ import annotations

from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


def refusal(spec: Data, problem: str) -> DataError:
    """Make the error that names the data set and says what is wrong with it."""
    return DataError(f"data.dataset {spec.dataset!r}: {problem}")
