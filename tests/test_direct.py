"""Evaluation without a Trainer: the same scores under the same names, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from tests.conftest import TickingClock
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.errors import ClientError
from flsimulation.experiment.spec import Train
from flsimulation.models import CNN, MLP, Logistic, TwoNN
from flsimulation.training import Batches
from flsimulation.training.direct import DirectEvaluator
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.stacked.compiler.step import NotStackable

X = torch.tensor(np.random.default_rng(0).normal(size=(23, 6)), dtype=torch.float32)
Y = torch.tensor(np.arange(23) % 3)


def batches(size: int = 8, x: Tensor = X, examples: int = 23) -> Batches:
    return Batches(x, Y, np.arange(examples), size)


def assert_equal(module: pl.LightningModule, data: Callable[[], Batches] = batches) -> None:
    """Direct scores are those of the Trainer, twice."""
    direct, trainer = DirectEvaluator(module), LocalTrainer(module, Train())
    state = {name: value * 1.5 for name, value in module.state_dict().items()}
    expected = trainer.evaluate(state, data(), seed=3)
    for _ in range(2):
        found = direct.evaluate(state, data(), seed=3)
        assert list(found) == list(expected)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("size", [1, 5, 8, 23, 40])
def test_shipped_models_score_as_with_the_trainer(size: int) -> None:
    torch.manual_seed(0)
    assert_equal(MLP(6, 3, hidden=(5, 4)), lambda: batches(size))
    if size == 5:
        assert_equal(TwoNN(6, 3), lambda: batches(size))
        assert_equal(Logistic(6, 3), lambda: batches(size))
        images = torch.tensor(np.random.default_rng(1).normal(size=(23, 1, 8, 8))).float()
        assert_equal(CNN(side=8, classes=3, width=2), lambda: batches(size, images))


class Scored(pl.LightningModule):
    """Scores a batch as the test asks; has every kind of layer that differs in evaluation."""

    def __init__(self, score: Callable[..., Any], **kept: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
        self.score, self.kept, self.count = score, kept, 0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.score(self, x, functional.cross_entropy(self(x), y), batch_idx)


def count(module: Any, x: Tensor, loss: Tensor, number: int) -> None:
    module.count += 1
    module.kept.setdefault("seen", []).append(1)
    module.log("count", float(module.count + len(module.kept["seen"])), reduce_fx="max")


def keep(module: Any, x: Tensor, loss: Tensor, number: int) -> None:
    module.kept.setdefault("losses", []).append(loss)
    module.log("losses", float(len(module.kept["losses"])), reduce_fx="max")


def add_up(module: Any, x: Tensor, loss: Tensor, number: int) -> None:
    module.layer[0].running_mean += 1
    module.log("mean", module.layer[0].running_mean.mean())


def move(module: Any, x: Tensor, loss: Tensor, number: int) -> None:
    module.layer[2].bias.mul_(2.0)
    module.log("loss", loss)


SCORES: dict[str, Callable[..., Any]] = {
    "mean": lambda m, x, v, i: m.log("val_loss", v),
    "names": lambda m, x, v, i: m.log_dict({"valid/loss": v, "acc": v / 2, "f1": 0.25}),
    "steps": lambda m, x, v, i: m.log("val_loss", v, on_step=True, on_epoch=True),
    "steps only": lambda m, x, v, i: (
        m.log("a", v, on_step=True, on_epoch=False),
        m.log("b", v),
    ),
    "reductions": lambda m, x, v, i: (
        m.log("sum", v, reduce_fx="sum"),
        m.log("least", v, reduce_fx="min"),
        m.log("most", v, reduce_fx=torch.max),
    ),
    "sizes": lambda m, x, v, i: (
        m.log("own", v, batch_size=len(x)),
        m.log("constant", v, batch_size=2),
        m.log("double", v, batch_size=2 * len(x) + i),
        m.log("n", len(x)),
        m.log("whole", torch.tensor(len(x)), prog_bar=True),
    ),
    "number": lambda m, x, v, i: m.log("i", float(i)),
    "random": lambda m, x, v, i: m.log("r", torch.rand(()) + np.random.rand()),
    "nothing": lambda m, x, v, i: None,
    "its own count": count,
    "kept tensors": keep,
    "a buffer in place": add_up,
    "a weight in place": move,
    "mode": lambda m, x, v, i: m.log("m", float(m.training) + float(torch.is_grad_enabled())),
}


@pytest.mark.parametrize("name", SCORES)
def test_what_is_logged_is_scored_as_with_the_trainer(name: str) -> None:
    assert_equal(Scored(SCORES[name]))


class Examined(MLP):
    """Has only a test step, without a batch's number."""

    validation_step = pl.LightningModule.validation_step

    def test_step(self, batch: Any) -> None:
        self.log("test_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())


class Hooked(Scored):
    """A hook of an evaluation that is not its."""

    def __init__(self) -> None:
        super().__init__(SCORES["mean"])

    def on_test_epoch_end(self) -> None:
        self.log("never", 1.0)


def test_the_step_is_the_trainers() -> None:
    torch.manual_seed(0)
    assert_equal(Examined(6, 3, hidden=(5, 4)))
    assert_equal(Hooked())


def test_the_module_and_the_model_stay_as_they_are() -> None:
    module = Scored(count)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    other = {name: value + 1 for name, value in state.items()}
    evaluator = DirectEvaluator(module)
    evaluator.evaluate(other, batches())
    assert module.count == 0
    assert module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])
        assert torch.equal(other[name], value + 1)


def test_a_module_is_copied_anew_only_if_its_step_changed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies, deepcopy = list[object](), copy.deepcopy

    def counted(value: Any, *memo: Any) -> Any:
        copies.append(value)
        return deepcopy(value, *memo)

    pure, impure = (DirectEvaluator(Scored(SCORES[name])) for name in ("mean", "its own count"))
    state = Scored(SCORES["mean"]).state_dict()
    monkeypatch.setattr("flsimulation.training.direct.copy", SimpleNamespace(deepcopy=counted))
    for evaluator, expected in ((pure, [1, 1, 1]), (impure, [1, 2, 3])):
        copies.clear()
        for model, so_far in zip((state, state, dict(state)), expected, strict=True):
            evaluator.evaluate(model, batches())
            assert len(copies) == so_far


def with_hook(name: str) -> type[Scored]:
    return type("WithHook", (Scored,), {name: lambda self, *args: args[0] if args else None})


@pytest.mark.parametrize(
    "name",
    [
        *("on_validation_epoch_start", "on_validation_batch_end", "on_validation_start", "setup"),
        *("configure_callbacks", "transfer_batch_to_device", "on_after_batch_transfer"),
    ],
)
def test_modules_with_hooks_around_their_step_are_refused(name: str) -> None:
    with pytest.raises(NotStackable, match=f"the module has a {name} of its own"):
        DirectEvaluator(with_hook(name)(SCORES["mean"]))


def test_a_module_without_an_evaluation_is_refused() -> None:
    with pytest.raises(NotStackable, match="the module has no validation_step"):
        DirectEvaluator(pl.LightningModule())


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (lambda m, x, v, i: m.trainer.max_epochs, "validation_step uses self.trainer"),
        (lambda m, x, v, i: m.log("e", m.current_epoch), "validation_step uses self.current_epoch"),
        (lambda m, x, v, i: m.log("v", "x"), "validation_step logs 'v', which is no number"),
        (lambda m, x, v, i: m.log(f"loss_{i}", v), "logs something else for other batches"),
        (lambda m, x, v, i: i == 1 and m.log("v", v), "logs something else for other batches"),
    ],
)
def test_steps_that_ask_for_a_trainer_are_refused(score: Callable[..., Any], reason: str) -> None:
    module = Scored(score)
    with pytest.raises(NotStackable, match=reason):
        DirectEvaluator(module).evaluate(module.state_dict(), batches())


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (
            lambda m, x, v, i: m.log("m", torchmetrics.MeanMetric()),
            r"the module logs 'm', a MeanMetric that is no attribute of it; assign it in __init__ "
            r"\(self.m = ...\)",
        ),
        (
            lambda m, x, v, i: m.log("each", x[0]),
            "the module logs 6 values as 'each'; log one number for each name",
        ),
    ],
)
def test_what_is_not_one_number_is_named(score: Callable[..., Any], reason: str) -> None:
    module = Scored(score)
    for evaluator in (DirectEvaluator(module), LocalTrainer(module, Train())):
        with pytest.raises(ClientError, match=f"^{reason}$"):
            evaluator.evaluate(module.state_dict(), batches())


def test_a_step_that_raises_is_a_clients_error() -> None:
    module = Scored(lambda m, x, v, i: [][i])
    for evaluator in (DirectEvaluator(module), LocalTrainer(module, Train())):
        with pytest.raises(ClientError, match="IndexError: list index out of range") as caught:
            evaluator.evaluate(module.state_dict(), batches())
        assert caught.value.reason == "error"


def test_no_examples_have_no_scores() -> None:
    module = Scored(SCORES["mean"])
    evaluator = DirectEvaluator(module)
    evaluator.evaluate(module.state_dict(), batches())
    assert evaluator.evaluate(module.state_dict(), batches(examples=0)) == {}


def test_an_evaluation_stops_when_its_time_is_up() -> None:
    seen = list[int]()
    module = Scored(lambda m, x, v, i: seen.append(i))
    module.score = lambda m, x, v, i: seen.append(i)
    evaluator = DirectEvaluator(module, clock=TickingClock())
    with pytest.raises(ClientError, match="deadline") as caught:
        evaluator.evaluate(module.state_dict(), batches(), expires=1.5)
    assert caught.value.reason == "deadline"
    assert seen == [0, 1]
