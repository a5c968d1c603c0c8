"""Names of the strategies, and a check of their parameters against Flower's own signatures."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator
from typing import Any

from flsimulation.experiment.suggest import remedy

STRATEGIES = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "fedavgm": "FedAvgM",
    "fedadam": "FedAdam",
    "fedadagrad": "FedAdagrad",
    "fedyogi": "FedYogi",
    "qfedavg": "QFedAvg",
    "fedmedian": "FedMedian",
    "fedtrimmedavg": "FedTrimmedAvg",
    "krum": "Krum",
    "multikrum": "MultiKrum",
    "bulyan": "Bulyan",
}
"""Name in the experiment file -> class in ``flwr.serverapp.strategy``."""

_DIVISORS = ("client-learning-rate", "tau")  # Flower divides by them
_SCALARS = (float, int, bool)  # records' key names and callables are not the file's business


def own_parameters(name: str) -> dict[str, inspect.Parameter]:
    """Parameters that the strategy adds to FedAvg's, by their kebab-case names."""
    from flwr.serverapp import strategy as flower

    common = inspect.signature(flower.FedAvg.__init__).parameters
    signature = inspect.signature(getattr(flower, STRATEGIES[name]).__init__)
    return {
        key.replace("_", "-"): parameter
        for key, parameter in signature.parameters.items()
        if key not in common and parameter.annotation in _SCALARS
    }


def check_parameters(name: str, given: dict[str, Any]) -> None:
    """Raise ``ValueError`` unless Flower's class accepts the parameters.

    The message begins with the key and a space, so that it can be shown after ``strategy.``.
    """
    if name == "fedavg" and not given:
        return  # the default experiment is known good without importing Flower
    known = own_parameters(name)
    for key, value in given.items():
        if key not in known:
            hint = remedy(key, known)
            raise ValueError(f"{key} is not a parameter of {name}, got {value!r}{hint}")
        kind = known[key].annotation
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{key} must be of type {kind.__name__}, got {value!r}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise ValueError(f"{key} is required by {name}; add it under [strategy]")
    _build(name, given)


@contextlib.contextmanager
def quiet_flower() -> Iterator[None]:
    """Let Flower log errors only inside the block; our events tell what it logs each round."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _build(name: str, given: dict[str, Any]) -> None:
    """Let Flower's constructor judge the values."""
    from flwr.serverapp import strategy as flower

    for key, value in given.items():
        if value < 0:
            raise ValueError(f"{key} must not be negative, got {value!r}")
        if value == 0 and key in _DIVISORS:
            raise ValueError(f"{key} must be greater than 0, got {value!r}")
    arguments = {key.replace("-", "_"): value for key, value in given.items()}
    try:
        with quiet_flower():
            getattr(flower, STRATEGIES[name])(**arguments)
    except ValueError as error:
        raise ValueError(f"{' '.join(given)} refused by Flower: {error}, got {given!r}") from None
