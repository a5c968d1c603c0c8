"""The direct engine: the Trainer's results in a plain loop, or a reason to use the Trainer."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from tests.conftest import TickingClock
from torch import Tensor, nn
from torch.nn import functional

from flsimulation import seeds
from flsimulation.errors import ClientError
from flsimulation.experiment.spec import Train
from flsimulation.training import Batches, Job, Terms
from flsimulation.training.copies import Copies
from flsimulation.training.direct_engine import DirectEngine
from flsimulation.training.direct_trainer import DirectTrainer
from flsimulation.training.engine import engine_for
from flsimulation.training.facts import NeedsTrainer
from flsimulation.training.jobs import Trained
from flsimulation.training.lightning import LocalTrainer

pytestmark = pytest.mark.usefixtures("cpu")

X = torch.tensor(np.random.default_rng(0).normal(size=(50, 6)), dtype=torch.float32)
Y = torch.tensor(np.arange(50) % 3)
FITS: tuple[dict[str, Any], ...] = (
    {},
    {"epochs": 3, "batch_size": 8},
    {"epochs": 2, "gradient_clip": 0.3, "accumulate": 3},
    {"learning_rate_decay": 0.5, "epochs": 2},
)


def batches(examples: int = 50, size: int = 8, x: Tensor = X) -> Batches:
    return Batches(x, Y, np.arange(examples), size, functools.partial(seeds.rng, 0, "batches"))


class Net(pl.LightningModule):
    """Draws numbers, keeps statistics, and has what the test gives it."""

    def __init__(self, **own: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 3)
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = functional.cross_entropy(self(x), y)
        step = self.own.get("step")
        return loss if step is None else step(self, loss, batch_idx, len(x))

    def configure_optimizers(self) -> Any:
        make = self.own.get("optimizer")
        return torch.optim.SGD(self.parameters(), lr=0.1) if make is None else make(self)


def fitted(module: pl.LightningModule, spec: Train, **terms: Any) -> tuple[Trained, Trained]:
    """One client's training with the Trainer, and in the direct loop."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    given = {"seed": 5, "round": 2, **terms}
    size = spec.batch_size if spec.batch_size != 32 else 8
    lightning = LocalTrainer(module, spec).fit(state, batches(size=size), **given)
    return lightning, DirectTrainer(module, spec).fit(state, batches(size=size), **given)


def assert_same(one: Trained, other: Trained, exactly: bool = True) -> None:
    assert one.steps == other.steps
    assert one.scores == pytest.approx(other.scores, rel=1e-6, abs=1e-9)
    assert list(one.scores) == list(other.scores)
    assert list(one.state) == list(other.state)
    for name, value in one.state.items():
        assert value.dtype == other.state[name].dtype
        if exactly:
            assert torch.equal(value, other.state[name]), name
        else:
            torch.testing.assert_close(value, other.state[name], rtol=1e-12, atol=1e-12)


def adam(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=0.01)


def lambda_lr(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 2}]


def one_cycle(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    steps = module.trainer.estimated_stepping_batches
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def by_epoch(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def lbfgs(module: Any) -> Any:
    return torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3)


@pytest.mark.parametrize("keys", FITS)
@pytest.mark.parametrize("make", [None, adam, lambda_lr, one_cycle, by_epoch])
def test_a_fit_is_the_trainers_bit_for_bit(make: Any, keys: dict[str, Any]) -> None:
    assert_same(*fitted(Net(optimizer=make), Train(**keys)))


def test_also_with_a_proximal_term_and_with_an_optimizer_that_calls_the_step_again() -> None:
    assert_same(*fitted(Net(), Train(epochs=2), proximal_mu=0.5))
    assert_same(*fitted(Net(optimizer=lbfgs), Train()))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_precisions_are_the_trainers(precision: str) -> None:
    one, other = fitted(Net(), Train(precision=precision, epochs=2, gradient_clip=0.5))
    assert_same(one, other, exactly=precision != "64-true")
    plain, _ = fitted(Net(), Train(epochs=2, gradient_clip=0.5))
    assert any(not torch.equal(value, plain.state[name]) for name, value in one.state.items())


class Recurrent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(2, 8, batch_first=True), nn.Linear(8, 3)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.view(-1, 3, 2))[0][:, -1])
        return logits


def test_recurrent_networks_are_copied_with_their_weights() -> None:
    assert_same(*fitted(Recurrent(), Train(epochs=2)))


STEPS: dict[str, Callable[..., Any]] = {
    "a dict": lambda m, loss, i, n: {"loss": loss, "more": 1},
    "none at times": lambda m, loss, i, n: None if i == 1 else loss,
    "logs": lambda m, loss, i, n: (m.log("a", loss), m.log("b", loss, on_epoch=True), loss)[-1],
    "dict of logs": lambda m, loss, i, n: (m.log_dict({"a": loss, "acc": 0.5}), loss)[-1],
    "epochs": lambda m, loss, i, n: (m.log("e", loss, on_step=False, on_epoch=True), loss)[-1],
    "reductions": lambda m, loss, i, n: (
        m.log("sum", loss, on_step=False, on_epoch=True, reduce_fx="sum"),
        m.log("most", loss, on_step=False, on_epoch=True, reduce_fx=torch.max),
        m.log("own", loss, on_step=False, on_epoch=True, batch_size=n),
        loss,
    )[-1],
    "facts": lambda m, loss, i, n: (
        loss * (1 + i + m.current_epoch + m.global_step)
        + m.trainer.max_epochs * m.trainer.num_training_batches
        + m.trainer.accumulate_grad_batches * m.federated_round
        + m.optimizers().param_groups[0]["lr"]
        + m.trainer.is_last_batch
    ),
    "draws": lambda m, loss, i, n: loss * torch.rand(()) * np.random.rand(),
}  # fmt: skip


@pytest.mark.parametrize("keys", FITS)
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_what_a_step_returns_logs_and_reads(name: str, keys: dict[str, Any]) -> None:
    assert_same(*fitted(Net(step=STEPS[name]), Train(**keys)))


_ORDER: list[str] = []
_HOOKS = [
    *("setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"),
    *("on_before_zero_grad", "optimizer_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "on_train_end"),
    *("on_fit_end", "teardown", "on_before_batch_transfer", "on_after_batch_transfer", "backward"),
    *("transfer_batch_to_device", "configure_gradient_clipping", "lr_scheduler_step"),
    *("optimizer_step", "zero_grad"),
]


def _noting(name: str) -> Callable[..., Any]:
    def hook(self: Any, *args: Any, **named: Any) -> Any:
        state = f"{self.current_epoch}, {self.global_step}" if self._trainer else ""
        _ORDER.append(f"{name} {state}")
        return getattr(super(Hooked, self), name)(*args, **named)

    return hook


class Hooked(Net):
    """Notes its hooks, with the epoch and the step at each."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _ORDER.append(f"training_step {batch_idx}")
        return super().training_step(batch, batch_idx)


for _name in _HOOKS:
    setattr(Hooked, _name, _noting(_name))


@pytest.mark.parametrize("keys", FITS)
def test_hooks_are_called_in_lightnings_order(keys: dict[str, Any]) -> None:
    module, orders = Hooked(optimizer=lambda_lr), []
    state, spec = module.state_dict(), Train(**keys)
    results = []
    for trainer in (LocalTrainer(module, spec), DirectTrainer(module, spec)):
        _ORDER.clear()
        results.append(trainer.fit(state, batches(20), seed=1, round=1))
        orders.append(list(_ORDER))
    assert orders[0] == orders[1]
    called = {line.partition(" ")[0] for line in orders[1]} | {"lr_scheduler_step"}
    assert called == {*_HOOKS, "training_step"}  # a scheduler's turn comes after two steps
    assert_same(*results)


class Skipping(Net):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 2 + self.current_epoch else None

    def on_train_epoch_end(self) -> None:
        self.log("end", float(self.global_step))


def test_a_batch_may_end_its_epoch_and_a_hook_may_log_at_the_end() -> None:
    one, other = fitted(Skipping(optimizer=by_epoch), Train(epochs=2))
    assert_same(one, other)
    assert (other.steps, other.scores["end"]) == (5, 5.0)


class Validating(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 1.0)

    def val_dataloader(self) -> Any:
        return []


class Manual(Net):
    def __init__(self, **own: Any) -> None:
        super().__init__(**own)
        self.automatic_optimization = False


class Measured(Net):
    def __init__(self, **own: Any) -> None:
        super().__init__(**own)
        self.mean = torchmetrics.MeanMetric()


def plateau(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "loss"}


def swallowed(module: Any, loss: Tensor, *_: Any) -> Tensor:
    try:
        return loss * len(module.trainer.callbacks)
    except Exception:
        return loss


REASONS: dict[str, tuple[pl.LightningModule, dict[str, Any]]] = {
    "the module optimizes by itself": (Manual(), {}),
    "the module has a val_dataloader of its own": (Validating(), {}),
    "train.validate evaluates between the epochs": (Net(), {"validate": True}),
    "configure_optimizers returns keys that need a Trainer": (Net(optimizer=plateau), {}),
    "the module has several optimizers or none": (Net(optimizer=lambda m: [adam(m), adam(m)]), {}),
    "uses self.trainer.callback_metrics": (
        Net(step=lambda m, loss, *_: (m.trainer.callback_metrics, loss)[1]),
        {},
    ),
    "sets self.trainer.should_stop": (
        Net(step=lambda m, loss, *_: (setattr(m.trainer, "should_stop", True), loss)[1]),
        {},
    ),
    "uses self.trainer.callbacks": (Net(step=swallowed), {}),
    "training_step logs 'm', a metric object": (
        Measured(step=lambda m, loss, *_: (m.mean(loss), m.log("m", m.mean), loss)[-1]),
        {},
    ),
    "training_step logs something else for other batches": (
        Net(step=lambda m, loss, i, n: (m.log(f"at {i}", loss), loss)[1]),
        {},
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_needs_the_trainer_is_found_before_the_run(reason: str) -> None:
    module, keys = REASONS[reason]
    with pytest.raises(NeedsTrainer, match=f"^{reason}$"):
        DirectEngine(module, Train(**keys), X, Y)
    engine = engine_for(module, Train(engine="auto", **keys), X, Y, 1)
    assert (engine.name, engine.why_not) == ("lightning", reason)


def jobs(*sizes: int) -> list[Job]:
    return [
        Job(place, batches(size), functools.partial(int, 3), round=1)
        for place, size in enumerate(sizes)
    ]


def late(module: Any, loss: Tensor, index: int, _: int) -> Tensor:
    return loss * (module.trainer.max_epochs if index < 4 else len(module.trainer.callbacks))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_client_that_needs_the_trainer_later_is_trained_with_it(processes: int) -> None:
    module = Net(step=late)
    engines = [
        engine_for(module, Train(engine=kind), X, Y, 3, processes)
        for kind in ("direct", "lightning")
    ]
    assert [engine.name for engine in engines] == ["direct", "lightning"]
    found = []
    for engine in engines:
        results = list(engine.fit(module.state_dict(), jobs(18, 50, 10), Terms()))
        engine.close()
        found.append([result for one in results for result in one.results.values()])
    for one, other in zip(*found, strict=True):
        assert isinstance(one, Trained)
        assert_same(one, other)


def odd(module: Any, loss: Tensor, index: int, count: int) -> Tensor:
    if count == 1:
        raise ValueError("one example")
    return loss * (float("inf") if count == 3 else 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_client_that_fails_does_not_touch_the_others(processes: int) -> None:
    module = Net(step=odd)
    module.body = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3))  # takes one example
    engine = engine_for(module, Train(engine="direct"), X, Y, 4, processes)
    results = list(engine.fit(module.state_dict(), jobs(16, 17, 19, 16), Terms()))
    engine.close()
    found = [one.results[place] for place, one in enumerate(results)]
    assert isinstance(found[1], ClientError)
    assert (found[1].reason, "ValueError: one example" in str(found[1])) == ("error", True)
    assert isinstance(found[2], ClientError)
    assert (found[2].reason, str(found[2])) == ("diverged", "its training loss is inf")
    assert_same(found[0], found[3])  # type: ignore[arg-type]


def test_a_fit_stops_when_its_time_is_up() -> None:
    module = Net()
    trainer = DirectTrainer(module, Train(), TickingClock())
    with pytest.raises(ClientError, match="deadline"):
        trainer.fit(module.state_dict(), batches(), seed=1, expires=2.5)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_without_a_loss_there_is_no_step() -> None:
    module = Net(step=lambda *_: None)
    with pytest.raises(ClientError, match="it made no optimizer step"):
        DirectTrainer(module, Train()).fit(module.state_dict(), batches(), seed=1)
    with pytest.raises(ClientError, match="it made no optimizer step"):
        DirectTrainer(Net(), Train()).fit(module.state_dict(), batches(0), seed=1)


def test_the_module_and_the_global_model_stay_as_they_are() -> None:
    module = Net(seen=[], step=lambda m, loss, *_: (m.own["seen"].append(1), loss)[1])
    state = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = DirectTrainer(module, Train())
    assert trainer.why_not(X, Y) is None
    first, second = (trainer.fit(state, batches(), seed=1, round=1) for _ in range(2))
    assert_same(first, second)
    assert module.own["seen"] == []
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_clients_module_is_gone_with_its_fit() -> None:
    seen: list[Any] = []
    module = Net(step=lambda m, loss, *_: (seen.append(weakref.ref(m)), loss)[1])
    trainer = DirectTrainer(module, Train())
    gc.disable()
    try:
        trainer.fit(module.state_dict(), batches(), seed=1)
        assert {ref() for ref in seen} == {None}
    finally:
        gc.enable()


class Shared(Net):
    """Has tied weights, a list of its own layers, and what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 3)
        self.other.weight = self.head.weight
        self.layers = [self.head]
        self.function = lambda x: x * 2
        self.register_buffer("kept", torch.arange(3.0))


class Copied:
    def __deepcopy__(self, memo: Any) -> Copied:
        return self


@pytest.mark.parametrize("kind", ["plain", "views", "own deepcopy"])
def test_copies_are_those_of_deepcopy(kind: str) -> None:
    module = Shared()
    module.function.own = module  # type: ignore[attr-defined]
    if kind == "views":
        module.view = module.kept[:2]
    elif kind == "own deepcopy":
        module.copied = Copied()
    made, expected = Copies(module)(), copy.deepcopy(module)
    assert isinstance(made, Shared)
    assert made.layers[0] is made.head
    assert made.other.weight is made.head.weight
    assert made.function is module.function
    assert made.kept is not module.kept
    assert list(vars(made)) == list(vars(expected))
    made.kept += 1
    with torch.no_grad():
        made.head.weight.zero_()
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])
    if kind == "views":
        assert torch.equal(made.view, made.kept[:2])
    if kind == "own deepcopy":
        assert made.copied is module.copied
