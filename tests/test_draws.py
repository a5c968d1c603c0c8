"""Random numbers and changing buffers of clients that train together: those of each client alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.test_cohort import (
    CLASSES,
    FEATURES,
    IMAGES,
    OPTIMIZERS,
    X32,
    Clients,
    Net,
    X,
    Y,
    assert_equal,
    built,
    refusal,
    together,
)
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.errors import ClientError
from flsimulation.experiment.spec import Train
from flsimulation.training import Batches
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.trainer import StackedTrainer

DTYPES = [
    (torch.float64, 1e-12),
    pytest.param(torch.float32, 1e-5, marks=pytest.mark.slow),
]


class Between(Net):
    """Does something between its two layers."""

    def __init__(
        self, act: Callable[[Any, Tensor], Tensor], optimizer: Any = None, **parts: nn.Module
    ) -> None:
        super().__init__(optimizer)
        self.act = act
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer_2(torch.tanh(self.act(self, self.layer_1(x))))
        return logits


def _part(m: Any, x: Tensor) -> Tensor:
    found: Tensor = m.part(x)
    return found


DRAWING: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "dropout": (_part, {"part": nn.Dropout(0.3)}),
    "twice": (lambda m, x: m.part(m.part(x)), {"part": nn.Dropout(0.3)}),
    "all": (lambda m, x: x + m.part(x), {"part": nn.Dropout(1.0)}),
    "alpha": (_part, {"part": nn.AlphaDropout(0.3)}),
    "channels": (
        lambda m, x: m.part(x[:, :, None].expand(-1, -1, 4)).mean(2), {"part": nn.Dropout1d(0.3)},
    ),
    "transposed": (lambda m, x: m.part(x.t()).t(), {"part": nn.Dropout(0.3)}),
    "noise": (lambda m, x: x + 0.1 * torch.randn_like(x), {}),
    "normal": (lambda m, x: x + torch.normal(0.5, 0.2, x.shape, dtype=x.dtype), {}),
    "normals": (lambda m, x: x + torch.normal(x, 0.1 + x.abs()), {}),
    "normal around values": (lambda m, x: x + torch.normal(x.detach(), 0.2), {}),
    "probabilities": (lambda m, x: x * torch.bernoulli(x.detach().sigmoid()), {}),
    "one for all": (lambda m, x: x * torch.rand(x.shape[1], dtype=x.dtype), {}),
    "number": (lambda m, x: x * torch.rand(()), {}),
    "integers": (lambda m, x: x * torch.randint(1, 4, (len(x), 1)), {}),
    "integers alike": (lambda m, x: x * torch.randint_like(x, 3), {}),
    "permutation": (lambda m, x: x[torch.randperm(len(x))] + x, {}),
    "gumbel": (lambda m, x: functional.gumbel_softmax(x), {}),
    "fused": (lambda m, x: torch.native_dropout(x, 0.3, train=True)[0], {}),
    "filled": (lambda m, x: x * torch.empty_like(x).bernoulli_(0.5), {}),
    "filled for all": (
        lambda m, x: x * torch.empty(x.shape[1], dtype=x.dtype).uniform_(0.5, 1.0), {},
    ),
}  # fmt: skip


@pytest.mark.seconds
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", DRAWING)
def test_steps_that_draw_equal_the_trainers(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    act, parts = DRAWING[kind]
    module = built(Between, act, dtype=dtype, **parts)
    assert_equal(module, Clients((9, 4, 7, 6), x=X.to(dtype)), tolerance)


@pytest.mark.seconds
@pytest.mark.parametrize("optimizer", ["momentum", "adam", "cosine"])
def test_steps_that_draw_equal_the_trainers_with_any_optimizer(optimizer: str) -> None:
    module = built(Between, _part, OPTIMIZERS[optimizer], part=nn.Dropout(0.4))
    assert_equal(module, Clients((8, 5, 8)), 1e-5, rounds=2, epochs=3)


def _batches(place: int) -> Batches:
    part = np.arange(place * 5, place * 5 + 3 + place) % len(X32)
    return Batches(X32, Y, part, 4, functools.partial(np.random.default_rng, [place]))


@pytest.mark.seconds
@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_client_draws_does_not_depend_on_who_trains_beside_it(threads: int) -> None:
    module = built(Between, _part, part=nn.Dropout(0.5))
    trainer = StackedTrainer(module, Train(batch_size=4, epochs=2), X32, Y)
    state, before = module.state_dict(), torch.get_num_threads()

    def trained(places: list[int]) -> dict[int, Tensor]:
        seeds = [functools.partial(int, 100 + place) for place in places]
        found = dict[int, Tensor]()
        for wave in trainer.fit(state, [_batches(place) for place in places], seeds):
            for place, client in enumerate(wave.clients):
                found[places[client]] = wave.state(place)["layer_1.weight"]
        return found

    torch.set_num_threads(threads)
    try:
        whole = trained([0, 1, 2, 3])
        for places in ([3, 0], [2, 1, 3], [1]):
            for place, weights in trained(places).items():
                torch.testing.assert_close(weights, whole[place], rtol=1e-5, atol=1e-6)
    finally:
        torch.set_num_threads(before)
    other = [functools.partial(int, 7)] * 2
    (_, one), (_, two) = together(trainer, state, [_batches(0), _batches(0)], seeds=other)
    assert torch.equal(one["layer_1.weight"], two["layer_1.weight"])


def test_dropout_keeps_as_many_as_it_says() -> None:
    class Kept(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            kept = functional.dropout(torch.ones(1000), 0.3) != 0
            self.log("kept", kept.double().mean())
            return super().training_step(batch, batch_idx)

    trainer = StackedTrainer(built(Kept), Train(batch_size=4), X32, Y)
    found = together(trainer, built(Kept).state_dict(), Clients([4] * 20).batches())
    kept = [result.scores["kept"] for result, _ in found]
    assert len(set(kept)) > 10
    assert np.mean(kept) == pytest.approx(0.7, abs=0.015)  # 4.6 standard deviations


# --- buffers --------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Keeps a running mean of its own, and a count."""

    mean: Tensor
    count: Tensor

    def __init__(self, *, replace: bool) -> None:
        super().__init__()
        self.replace = replace
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().mean(0)
        if self.replace:
            self.mean, self.count = 0.9 * self.mean + 0.1 * now, self.count + 1
        else:
            self.mean.mul_(0.9).add_(0.1 * now)
            self.count += 1
        return x - self.mean


class Teacher(Net):
    """Follows itself with an average of its weights, which no optimizer trains."""

    def __init__(self) -> None:
        super().__init__()
        self.follower = nn.Linear(FEATURES, 5).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.no_grad():
            for own, other in zip(self.follower.parameters(), self.layer_1.parameters()):
                own.mul_(0.9).add_(0.1 * other)
        apart = (self.layer_1(batch[0]) - self.follower(batch[0])).square().mean()
        return super().training_step(batch, batch_idx) + apart


KEEPING: dict[str, Callable[..., Any]] = {
    "batch norm": lambda: Between(_part, part=nn.BatchNorm1d(5)),
    "momentum": lambda: Between(_part, part=nn.BatchNorm1d(5, momentum=0.3, affine=False)),
    "no statistics": lambda: Between(_part, part=nn.BatchNorm1d(5, track_running_stats=False)),
    "with dropout": lambda: Between(_part, part=nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.2))),
    "of sequences": lambda: Between(
        lambda m, x: m.part(torch.stack([x, x * x], 2)).mean(2), part=nn.BatchNorm1d(5)
    ),
    "instances": lambda: Between(
        lambda m, x: m.part(x[:, None])[:, 0], part=nn.InstanceNorm1d(1, track_running_stats=True)
    ),
    "frozen": lambda: Between(_part, part=nn.BatchNorm1d(5).eval()),
    "own": lambda: Between(_part, part=Counting(replace=False)),
    "replaced": lambda: Between(_part, part=Counting(replace=True)),
    "teacher": Teacher,
}
ROUNDINGS = {("with dropout", torch.float32): 10}
"""Times the tolerance: batch normalization of what dropout left has gradients of roundings, which differ between
processors, and Adam divides them by their own size. In float64 nothing is allowed."""


@pytest.mark.seconds
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", KEEPING)
def test_steps_that_change_buffers_equal_the_trainers(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    module = built(KEEPING[kind], dtype=dtype)
    tolerance *= ROUNDINGS.get((kind, dtype), 1)
    trainer = assert_equal(module, Clients((10, 4, 7, 6), x=X.to(dtype)), tolerance)
    if kind not in ("no statistics", "frozen"):
        assert trainer._stack.programs.names.moving


class Images(Net):
    """A small network of images with all that is written in another form for many clients."""

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.conv_1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(4)
        self.conv_2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)  # Adam's noise
        self.norm_2 = nn.BatchNorm2d(6)
        self.drop = nn.Dropout2d(0.2)
        self.layer_2 = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.norm_1(self.conv_1(x))), 2)
        x = functional.avg_pool2d(self.norm_2(self.conv_2(x)), 2, 1)
        logits: Tensor = self.layer_2(functional.adaptive_avg_pool2d(self.drop(x), 1).flatten(1))
        return logits


@pytest.mark.seconds
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_convolutions_with_statistics_equal_the_trainers(
    optimizer: str, dtype: torch.dtype, tolerance: float
) -> None:
    module = built(Images, OPTIMIZERS[optimizer], dtype=dtype)
    assert_equal(module, Clients((9, 4, 7, 6), x=IMAGES.to(dtype)), tolerance)


@pytest.mark.seconds
def test_a_frozen_convolution_is_one_for_all_clients() -> None:
    module = built(Images)
    module.conv_1.requires_grad_(False)
    assert_equal(module, Clients((9, 4, 7), x=IMAGES.float()))


def test_a_client_whose_last_batch_is_one_example_fails_alone_as_with_the_trainer() -> None:
    module = built(KEEPING["batch norm"])
    clients, spec = Clients((8, 5, 4)), Train(batch_size=4)
    stacked = StackedTrainer(module, spec, clients.x, clients.y)
    results = [result for result, _ in together(stacked, module.state_dict(), clients.batches())]
    assert isinstance(results[1], ClientError)
    with pytest.raises(ClientError) as alone:
        LocalTrainer(module, spec).fit(module.state_dict(), clients.batches()[1], seed=2)
    assert (results[1].reason, str(results[1])) == ("error", str(alone.value))
    assert [isinstance(result, ClientError) for result in results] == [False, True, False]


def test_a_mean_without_momentum_is_left_to_a_client_by_itself() -> None:
    assert ".item()" in refusal(built(Between, _part, part=nn.BatchNorm1d(5, momentum=None)))


def test_the_mean_of_counts_is_a_whole_number() -> None:
    module = built(KEEPING["batch norm"])
    trainer = StackedTrainer(module, Train(batch_size=4), X32, Y)
    clients = Clients((12, 4, 4))
    (wave,) = _one_thread(lambda: list(trainer.fit(module.state_dict(), clients.batches())))
    mean = wave.averaged().weights["part.num_batches_tracked"]
    assert (mean.dtype, int(mean)) == (torch.int64, 2)  # (12 * 3 + 4 + 4) / 20 = 2.2


def _one_thread(call: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def test_a_step_that_draws_otherwise_for_many_clients_is_refused() -> None:
    with pytest.raises(NotStackable, match="draws random numbers in another way"):
        StackedTrainer(built(Between, lambda m, x: _unlike(x)), Train(), X32, Y)


def _unlike(x: Tensor) -> Tensor:
    many = torch._C._functorch.is_batchedtensor(x)
    return x + (torch.rand(2, *x.shape)[0] if many else torch.rand(x.shape))


@pytest.mark.seconds
def test_clients_of_large_steps_train_in_smaller_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    module, clients = built(Images), Clients([4] * 12, x=IMAGES.float())

    def waves() -> list[int]:
        trainer = StackedTrainer(module, Train(batch_size=4, engine="stacked"), clients.x, Y)
        found = _one_thread(lambda: list(trainer.fit(module.state_dict(), clients.batches())))
        return [len(wave.clients) for wave in found]

    assert waves() == [12]
    written = StackedTrainer(module, Train(), clients.x, Y)._stack.programs.written_bytes
    monkeypatch.setattr("flsimulation.training.stacked.room._STEP_BYTES", 5 * 4 * written + 1)
    assert waves() == [4, 4, 4]  # of at most five, alike
