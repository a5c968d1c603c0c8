"""``synthetic``: the data set synthetic(alpha, beta) of the FedProx and q-FFL papers, from a seed.

Sources: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
Networks", MLSys 2020, section 5.1, and Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in
Federated Learning", ICLR 2020. The sizes, and alpha and beta as standard deviations, are those of
the authors' programs (github.com/litian96/FedProx and fair_flearn, generate_synthetic.py).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, ValidationError

from flsimulation import seeds
from flsimulation.data.arrays import Examples, assemble, refusal
from flsimulation.data.dataset import Dataset
from flsimulation.data.task import About
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data, Section
from flsimulation.experiment.suggest import remedy

FEATURES, CLASSES = 60, 10
SPREAD = np.arange(1, FEATURES + 1) ** -0.6
"""Standard deviations of the inputs about their device's mean; the variances are j^-1.2."""

_MOST_EXAMPLES = 10_000_000  # of one device: 2.4 GB
_Positive = Annotated[float, Field(ge=0)]


class Settings(Section):
    """``data.args`` of ``synthetic``."""

    alpha: _Positive = 1.0
    """How far the devices' models lie apart."""
    beta: _Positive = 1.0
    """How far the devices' inputs lie apart."""
    iid: bool = False
    """One model and one distribution of the inputs for all devices; alpha and beta mean nothing."""
    size_mean: float = 4.0
    """Mean of the logarithm of a device's examples beyond the least."""
    size_sigma: _Positive = 2.0
    """Standard deviation of that logarithm."""
    size_least: Annotated[int, Field(ge=1)] = 50
    """The least examples of a device, test examples included."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of the data in place of the experiment's: runs that differ in theirs share the data."""


class Device(NamedTuple):
    """One device's data, and the model that labelled it."""

    x: np.ndarray
    """Inputs, float64 [n, 60]."""
    y: np.ndarray
    """Labels, int64 [n]."""
    weights: np.ndarray
    """W, float64 [60, 10]."""
    bias: np.ndarray
    """b, float64 [10]."""


def load_synthetic(spec: Data, seed: int) -> Dataset:
    """Make the data set of ``data.clients`` devices; each is a natural client.

    The test set is ``data.test-fraction`` of each device's examples.

    Raises
    ------
    DataError
        If ``data.args`` are wrong, or the devices are not to be the clients.
    """
    settings = _settings(spec)
    if spec.partition != "natural":
        raise DataError(
            f"data.partition must be 'natural' for {spec.dataset!r}, whose devices are the "
            f"clients, got {spec.partition!r}; set data.partition = 'natural'"
        )
    train, test = list[Examples](), list[Examples]()
    for number in range(spec.clients):
        device = draw_device(settings, seed if settings.seed is None else settings.seed, number)
        if device is None:
            raise refusal(
                spec,
                f"device {number} would have more than {_MOST_EXAMPLES:,} examples; lower "
                f"data.args.size_mean {settings.size_mean} or size_sigma {settings.size_sigma}",
            )
        examples = Examples(device.x, device.y, np.full(len(device.y), number))
        kept = int((1 - spec.test_fraction) * len(device.y))
        if kept == 0:
            raise DataError(
                f"data.test-fraction {spec.test_fraction} leaves no training example of the "
                f"{len(device.y)} of device {number}; lower it"
            )
        train.append(examples.take(np.arange(kept)))
        test.append(examples.take(np.arange(kept, len(device.y))))
    names = [str(number) for number in range(CLASSES)]
    return assemble(spec, seed, _joined(train), _joined(test), names, About(quiet=True))


def draw_device(settings: Settings, seed: int, number: int) -> Device | None:
    """Draw one device's model and examples; None where they would be too many.

    With u ~ N(0, alpha) and B ~ N(0, beta) of the device, each element of W and b ~ N(u, 1) and
    of v ~ N(B, 1); then x ~ N(v, diag(j^-1.2)) and y = argmax(softmax(xW + b)).

    Parameters
    ----------
    settings : Settings
        Of the distributions.
    seed : int
        Of the data.
    number : int
        The device's; it has a stream of its own.
    """
    rng = seeds.rng(seed, "synthetic", partition=number)
    further = rng.lognormal(settings.size_mean, settings.size_sigma)
    if not further + settings.size_least <= _MOST_EXAMPLES:
        return None
    size = int(further) + settings.size_least
    if settings.iid:
        common, u, v = seeds.rng(seed, "synthetic-model"), 0.0, np.zeros(FEATURES)
    else:
        common, u = rng, rng.normal(0, settings.alpha)
        v = rng.normal(rng.normal(0, settings.beta), 1, FEATURES)
    weights = common.normal(u, 1, (FEATURES, CLASSES))
    bias = common.normal(u, 1, CLASSES)
    x = v + SPREAD * rng.standard_normal((size, FEATURES))
    return Device(x, (x @ weights + bias).argmax(axis=1), weights, bias)  # softmax keeps the order


def _joined(parts: list[Examples]) -> Examples:
    return Examples(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate([part.owners for part in parts if part.owners is not None]),
    )


def _settings(spec: Data) -> Settings:
    try:
        return Settings.model_validate(spec.args)
    except ValidationError as error:
        first = error.errors()[0]
    key, value = str(first["loc"][0]), first["input"]
    if first["type"] == "extra_forbidden":
        hint = remedy(key, Settings.model_fields)
        raise DataError(f"data.args.{key} has no meaning for {spec.dataset!r}, got {value!r}{hint}")
    must = first["msg"].replace("Input should", "must")
    raise DataError(f"data.args.{key} of {spec.dataset!r} {must}, got {value!r}")
