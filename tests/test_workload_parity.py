"""The models of the benchmarks: stacked, direct and with the Trainer they learn the same."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from flsimulation.experiment.spec import Train
from flsimulation.training import Batches, Job, State, Terms, engine_for
from flsimulation.training.jobs import Trained

pytestmark = pytest.mark.seconds

SHARED = Path(__file__).parent.parent / "benchmarks" / "peers" / "shared"
SIZES = (9, 4, 7, 5)
BATCH = 4
RNG = np.random.default_rng(0)


def _images(channels: int, side: int) -> Tensor:
    return torch.tensor(RNG.normal(size=(sum(SIZES), channels, side, side)))


DATA: dict[str, tuple[Tensor, Tensor]] = {
    name: (_images(channels, side), torch.tensor(RNG.integers(10, size=sum(SIZES))))
    for name, channels, side in (
        *(("DropoutPerceptron", 1, 28), ("NormalizedCNN", 1, 28), ("RowGRU", 1, 28)),
        *(("RowTransformer", 1, 28), ("ResNet8", 3, 32)),
    )
} | {
    "CharacterLSTM": (
        torch.tensor(RNG.integers(80, size=(sum(SIZES), 12))),
        torch.tensor(RNG.integers(80, size=(sum(SIZES), 12))),
    )
}

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda own: SGD(own, lr=0.05),
    "momentum": lambda own: SGD(own, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda own: _with(Adam(own, lr=1e-3), lambda o: CosineAnnealingLR(o, 3), "epoch"),
    "adamw": lambda own: _with(AdamW(own, lr=1e-3), lambda o: OneCycleLR(o, 0.01, 99), "step"),
    "warm-up": lambda own: _with(
        SGD(own, lr=0.05), lambda o: LambdaLR(o, lambda step: min(1.0, (step + 1) / 4)), "step"
    ),
}


def _with(optimizer: Any, scheduler: Callable[[Any], Any], interval: str) -> Any:
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": interval},
    }


@pytest.fixture(scope="module")
def models() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SHARED)
        yield importlib.import_module("models")
    sys.modules.pop("models")


def _made(models: Any, name: str, optimizer: str, dtype: torch.dtype) -> Any:
    cls = getattr(models, name)
    torch.manual_seed(0)
    module = cls().to(dtype)
    own = type(
        name, (cls,), {"configure_optimizers": lambda m: OPTIMIZERS[optimizer](m.parameters())}
    )
    module.__class__ = own
    return module


def _fitted(module: Any, name: str, engine: Any, epochs: int, dtype: torch.dtype) -> list[Trained]:
    x, y = DATA[name]
    x = x.to(dtype) if x.is_floating_point() else x
    ends = np.cumsum(SIZES)
    jobs = [
        Job(
            place,
            Batches(
                *(x, y, np.arange(end - size, end), BATCH),
                functools.partial(np.random.default_rng, [1, place]),
            ),
            functools.partial(int, 10 + place),
            round=1,
        )
        for place, (size, end) in enumerate(zip(SIZES, ends, strict=True))
    ]
    spec = Train(batch_size=BATCH, epochs=epochs, engine=engine, device="cpu")
    by = engine_for(module, spec, x, y, len(SIZES))
    assert by.name == engine
    found: dict[int, Any] = {}
    for fitted in by.fit(module.state_dict(), jobs, Terms()):
        found |= dict(fitted.results)
    return [found[place] for place in range(len(SIZES))]


def _apart(one: State, other: State) -> float:
    """The largest difference of an array, by the norm of all."""
    assert list(one) == list(other)
    whole = torch.cat([value.double().flatten() for value in other.values()]).norm()
    return max(float((one[name].double() - other[name].double()).norm() / whole) for name in one)


CASES = [
    *((name, "sgd", 1) for name in DATA),
    *(("DropoutPerceptron", optimizer, 3) for optimizer in OPTIMIZERS),
    *(("NormalizedCNN", "momentum", 2), ("RowGRU", "adam", 2), ("RowTransformer", "adamw", 2)),
    *(("CharacterLSTM", "warm-up", 2), ("ResNet8", "momentum", 2)),
]


@pytest.mark.parametrize(("name", "optimizer", "epochs"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_engines_learn_the_same(
    models: Any, name: str, optimizer: str, epochs: int, dtype: torch.dtype, tolerance: float
) -> None:
    module = _made(models, name, optimizer, dtype)
    reference = _fitted(module, name, "lightning", epochs, dtype)
    if "norm" in str(module).lower() and epochs > 1 and dtype == torch.float32:
        tolerance = (
            1e-4  # batches of four examples, whose statistics enlarge roundings step by step
        )
    for engine in ("direct", "stacked"):
        for own, other in zip(_fitted(module, name, engine, epochs, dtype), reference, strict=True):
            if isinstance(other, Exception):  # batch normalization of a single example
                assert str(own) == str(other)
                continue
            assert _apart(own.state, other.state) <= (0.0 if engine == "direct" else tolerance)
            assert own.steps == other.steps
            assert own.scores == pytest.approx(other.scores, rel=10 * tolerance)
