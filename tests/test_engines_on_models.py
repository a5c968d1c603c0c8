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

pytestmark = [pytest.mark.seconds, pytest.mark.slow]

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
    "spectral norm": (
        ROWS,
        lambda: Model(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Tanh(), _head(5)),
    ),
    "spectral norm of before": (
        ROWS, lambda: Model(nn.utils.spectral_norm(nn.Linear(6, 5)), nn.Tanh(), _head(5)),
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


def _seeding(model: Model, batch: Any, _: int) -> Tensor:
    torch.manual_seed(3)
    return functional.cross_entropy(model.net(batch[0] + torch.randn_like(batch[0])), batch[1])


def _forking(model: Model, batch: Any, _: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        noise = torch.randn_like(batch[0])
    noisy = batch[0] + noise + torch.randn_like(batch[0])
    return functional.cross_entropy(model.net(noisy), batch[1])


def _drawn_rate(model: Model) -> Any:
    return torch.optim.SGD(model.parameters(), lr=float(torch.rand(())) / 10)


def _with(**methods: Any) -> Callable[[], nn.Module]:
    """A model with a dropout and with methods of its own."""
    cls = type("Own", (Model,), methods)
    return lambda: cls(nn.Linear(6, 5), nn.Dropout(0.3), nn.Linear(5, CLASSES))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "seeds": (
        _with(training_step=_seeding), "training_step sets the state of PyTorch's random numbers",
    ),
    "puts a state back": (
        _with(training_step=_forking), "training_step sets the state of PyTorch's random numbers",
    ),
    "draws a learning rate": (
        _with(configure_optimizers=_drawn_rate), "configure_optimizers draws random numbers",
    ),
    "keeps gradients": (
        _with(configure_optimizers=lambda m: _with_its_own(m)),
        "the optimizer has a zero_grad of its own",
    ),
}  # fmt: skip


def _drops_its_path(model: Model, batch: Any, _: int) -> Tensor:
    x = batch[0] if torch.rand(()) < 0.5 else batch[0].tanh()
    return functional.cross_entropy(model.net(x), batch[1])


def _reads_a_number(model: Model, batch: Any, _: int) -> Tensor:
    return functional.cross_entropy(model.net(batch[0]) * batch[0].max().item(), batch[1])


@pytest.mark.parametrize("step", [_drops_its_path, _reads_a_number])
def test_a_step_that_depends_on_a_value_is_named_with_its_line(step: Any) -> None:
    module = built(_with(training_step=step), torch.float32)
    engine, found = fitted(module, ROWS.float(), "auto")
    line = step.__code__.co_firstlineno + 1
    assert engine.name == "direct"
    assert engine.why_not == (
        f"training_step depends on a tensor's value (`if`, `.item()`) (test_engines_on_models.py:{line})"
    )
    for own, other in zip(found, fitted(module, ROWS.float(), "lightning")[1], strict=True):
        assert_alike(own, other, 0.0)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_many_clients_cannot_do_at_once_is_refused_and_trained_one_by_one(
    kind: str, processes: int
) -> None:
    make, reason = REFUSED[kind]
    module = built(make, torch.float32)
    engine, found = fitted(module, ROWS.float(), "auto", processes)
    assert (engine.name, engine.why_not) == ("direct", reason)
    for own, other in zip(found, fitted(module, ROWS.float(), "lightning")[1], strict=True):
        assert_alike(own, other, 0.0)


def test_a_step_that_fails_for_all_clients_has_no_gradient_to_clip() -> None:
    module = built(
        lambda: Model(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), _head(5)), torch.float64
    )
    engine, found = fitted(module, ROWS, "auto", gradient_clip=0.1)
    assert engine.name == "stacked"
    reference = fitted(module, ROWS, "lightning", gradient_clip=0.1)[1]
    assert [isinstance(own, Trained) for own in reference] == [False, True, True, True]
    for own, other in zip(found, reference, strict=True):
        assert_alike(own, other, 1e-12)


class _KeepsHalf(torch.optim.SGD):
    """Begins each batch with half of the last one's gradient."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(0.5)


class _Inherits(_KeepsHalf):
    pass


def _with_its_own(model: Model) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer.zero_grad = lambda set_to_none=True: _KeepsHalf.zero_grad(optimizer)  # type: ignore[method-assign,assignment,misc,arg-type]
    return optimizer


@pytest.mark.parametrize(
    "make", [lambda m: _Inherits(m.parameters(), lr=0.05), _with_its_own], ids=["class", "object"]
)
def test_an_optimizer_that_keeps_gradients_keeps_them_in_the_direct_loop(make: Any) -> None:
    module = built(_with(configure_optimizers=make), torch.float32)
    found = fitted(module, ROWS.float(), "direct")[1]
    for own, other in zip(found, fitted(module, ROWS.float(), "lightning")[1], strict=True):
        assert_alike(own, other, 0.0)
