"""Modules as users write them: each engine that takes one learns what Lightning's Trainer learns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.experiment.spec import Train
from flsimulation.training import Batches, Job, Terms, engine_for
from flsimulation.training.jobs import Trained

pytestmark = pytest.mark.seconds

SIZES, BATCH, CLASSES = (9, 4, 7, 6), 4, 3
"""Examples of the clients: batches of 4 leave 1, 0, 3 and 2."""
RNG = np.random.default_rng(0)
ROWS, IMAGES = (torch.tensor(RNG.normal(size=(sum(SIZES), *s))) for s in ((6,), (2, 8, 8)))
Y = torch.tensor(RNG.integers(CLASSES, size=sum(SIZES)))
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


class Model(pl.LightningModule):
    """A classifier by the layers that it is made of.

    Parameters
    ----------
    layers : Module
        One after the other; the last one returns the classes' logits.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fitted(
    module: pl.LightningModule, x: Tensor, engine: Any, processes: int = 1, **train: Any
) -> tuple[Any, list[Any]]:
    """The engine, and each client's result in the order of the clients."""
    ends = np.cumsum(SIZES)
    jobs = [
        Job(
            place,
            Batches(
                *(x, Y, np.arange(end - size, end), BATCH),
                functools.partial(np.random.default_rng, [1, place]),
            ),
            functools.partial(int, 10 + place),
            round=1,
        )
        for place, (size, end) in enumerate(zip(SIZES, ends, strict=True))
    ]
    spec = Train(**{"batch_size": BATCH, "epochs": 2, "engine": engine, "device": "cpu", **train})
    by = engine_for(module, spec, x, Y, len(SIZES), processes)
    found: dict[int, Any] = {}
    for results in by.fit(module.state_dict(), jobs, Terms()):
        found |= dict(results.results)
    by.close()
    return by, [found[place] for place in range(len(SIZES))]


def assert_alike(own: Any, other: Any, tolerance: float) -> None:
    """A client's result is the Trainer's; at tolerance 0 in every bit."""
    if not isinstance(other, Trained):
        assert str(own) == str(other)
        return
    assert own.steps == other.steps
    assert own.scores == pytest.approx(other.scores, rel=max(1e-6, 10 * tolerance))
    assert list(own.state) == list(other.state)
    whole = torch.cat([value.double().flatten() for value in other.state.values()]).norm()
    for name, value in other.state.items():
        assert own.state[name].dtype == value.dtype
        assert float((own.state[name].double() - value.double()).norm() / whole) <= tolerance, name


def built(make: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    """A module with seeded weights."""
    torch.manual_seed(0)
    return make().to(dtype)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _head(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, CLASSES))


STACKED: dict[str, tuple[Tensor, Callable[[], nn.Module]]] = {
    "groups of a convolution's channels": (
        IMAGES, lambda: Model(_conv(2, 4), nn.GroupNorm(2, 4), nn.ReLU(), _head(256)),
    ),
    "groups of the data's channels": (
        IMAGES,
        lambda: Model(
            nn.GroupNorm(2, 2, affine=False), _conv(2, 4), nn.GroupNorm(1, 4), nn.Tanh(), _head(256)
        ),
    ),
    "groups of rows": (
        ROWS, lambda: Model(nn.Linear(6, 12), nn.GroupNorm(2, 12), nn.Tanh(), _head(12)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", STACKED)
def test_models_that_train_stacked(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    x, make = STACKED[kind]
    module, x = built(make, dtype), x.to(dtype)
    engine, found = fitted(module, x, "auto")
    assert (engine.name, engine.why_not) == ("stacked", None)
    for own, other in zip(found, fitted(module, x, "lightning")[1], strict=True):
        assert_alike(own, other, tolerance)
