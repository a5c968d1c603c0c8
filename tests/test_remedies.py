"""Each reason against a faster engine, triggered by a module, and its remedy."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.experiment.spec import Train
from flsimulation.training import remedies
from flsimulation.training.candidates import Candidates
from flsimulation.training.engine import NOT_FASTER
from flsimulation.training.remedies import remedy_of
from flsimulation.training.work import Work

X, Y = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
Act = Callable[[Any, Tensor, Any], Any]


class Net(pl.LightningModule):
    """A layer, by SGD or what the test says, whose step does what the test says."""

    def __init__(self, act: Act | None = None, optimizer: Any = None, **own: Any) -> None:
        super().__init__()
        self.head, self.act, self.optimizer = nn.Linear(6, 3), act, optimizer
        for name, value in own.items():
            setattr(self, name, value)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        found = self.act(self, x, batch_idx) if self.act is not None else None
        if isinstance(found, str):
            return None
        return functional.cross_entropy(self.head(x), y) + (0.0 if found is None else found)

    def configure_optimizers(self) -> Any:
        return sgd(self) if self.optimizer is None else self.optimizer(self)


def sgd(module: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def own(name: str, **more: Any) -> Net:
    """A module with a method of this name."""
    return type("Own", (Net,), {name: lambda *_, **__: None, **more})()


def changing(name: str) -> Net:
    """A module with a method of this name that changes something."""

    def change(module: Any, *_: Any, **__: Any) -> None:
        module.changed = object()

    return type("Own", (Net,), {name: change})()


def zeroing(module: Any) -> torch.optim.Optimizer:
    optimizer = sgd(module)
    optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]
    return optimizer


class Manual(Net):
    """Optimizes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Loader(Net):
    """Takes the loader."""

    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return None


class Stepless(pl.LightningModule):
    """Has no training step."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def configure_optimizers(self) -> Any:
        return sgd(self)


def hooked(module: Any) -> torch.optim.Optimizer:
    optimizer = sgd(module)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def scheduled(scheduler: Any, **config: Any) -> Callable[[Any], Any]:
    def configure(module: Any) -> Any:
        optimizer = sgd(module)
        own = {"scheduler": scheduler(optimizer), **config}
        return {"optimizer": optimizer, "lr_scheduler": own}

    return configure


def same(module: Any) -> torch.optim.Optimizer:
    module.__dict__.setdefault("made", sgd(module))
    return module.__dict__["made"]  # type: ignore[no-any-return]


def count(module: Any, x: Tensor, _: Any) -> None:
    module.counter += 1


def clamp(module: Any, x: Tensor, _: Any) -> None:
    with torch.no_grad():
        module.head.weight.clamp_(-0.1, 0.1)


def fails(module: Any, x: Tensor, _: Any) -> None:
    raise ValueError("boom")


PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau
STEP = torch.optim.lr_scheduler.LambdaLR
METRIC = torchmetrics.MeanMetric

STACKED: dict[str, tuple[Callable[[], pl.LightningModule], dict[str, Any], str]] = {
    "train.validate evaluates": (Net, {"validate": True}, "set train.validate = false"),
    "a fused optimizer divides": (
        lambda: Net(optimizer=lambda m: torch.optim.Adam(m.parameters(), fused=True)),
        {"precision": "16-mixed"}, "leave out fused=True",
    ),
    "the module optimizes by itself": (Manual, {}, "leave automatic_optimization at True"),
    "configure_callbacks of its own": (lambda: own("configure_callbacks"), {}, "freeze layers by"),
    "configure_gradient_clipping of its own": (
        lambda: changing("configure_gradient_clipping"), {}, "set train.gradient-clip to the largest",
    ),
    "on_train_epoch_end of its own": (
        lambda: changing("on_train_epoch_end"), {}, "remove this method",
    ),
    "the optimizer has a zero_grad": (lambda: Net(optimizer=zeroing), {}, "leave zero_grad as"),
    "a log of its own": (lambda: own("log"), {}, "rename the method"),
    "configure_optimizers needs a Trainer": (
        lambda: Net(optimizer=lambda m: m.trainer.callbacks), {}, "make the optimizer from",
    ),
    "LBFGS does not work element by element": (
        lambda: Net(optimizer=lambda m: torch.optim.LBFGS(m.parameters())), {}, "use SGD, Adam",
    ),
    "the optimizer has hooks": (lambda: Net(optimizer=hooked), {}, "register no hooks"),
    "several optimizers": (
        lambda: Net(optimizer=lambda m: [sgd(m), sgd(m)]), {}, "return one optimizer",
    ),
    "its scheduler goes by a metric": (
        lambda: Net(optimizer=scheduled(PLATEAU)), {}, "CosineAnnealingLR",
    ),
    "keys that need a Trainer": (
        lambda: Net(optimizer=lambda m: {"optimizer": sgd(m), "monitor": "a"}), {}, "StepLR",
    ),
    "the same optimizer each time": (lambda: Net(optimizer=same), {}, "make a new optimizer"),
    "takes a dataloader_iter": (Loader, {}, "let training_step take"),
    "returns no loss": (lambda: Net(lambda *_: "none"), {}, "return the loss of the batch"),
    "uses self.current_epoch otherwise than in sums, products and comparisons (test_remedies.py:": (
        lambda: Net(lambda m, *_: float(m.current_epoch)), {}, "write torch.where or torch.clamp",
    ),
    "uses self.trainer.callback_metrics (test_remedies.py:": (
        lambda: Net(lambda m, *_: m.trainer.callback_metrics and None), {}, "do without it",
    ),
    "uses batch_idx otherwise than in sums, products and comparisons (test_remedies.py:": (
        lambda: Net(lambda m, x, i: 1.0 if i else 2.0), {}, "write torch.where or torch.clamp",
    ),
    "by Python's or NumPy's random": (
        lambda: Net(lambda *_: random.random()), {}, "draw with torch.rand",
    ),
    "Python's or NumPy's random": (
        lambda: Net(lambda *_: np.random.rand()), {}, "draw with torch.rand",
    ),
    "a random generator of its own (test_remedies.py:": (
        lambda: Net(lambda m, *_: torch.rand((), generator=m.g), g=torch.Generator()),
        {}, "leave out generator=",
    ),
    "draws random numbers that depend on others (aten.multinomial": (
        lambda: Net(lambda m, x, _: torch.multinomial(x.abs(), 1).sum()), {}, "torch.rand_like(p) < p",
    ),
    "logs 'm', a metric object (test_remedies.py:": (
        lambda: Net(lambda m, *_: m.log("m", m.metric), metric=METRIC()), {}, "validation_step only",
    ),
    "logs 'v' twice": (
        lambda: Net(lambda m, *_: (m.log("v", 1.0), m.log("v", 2.0))[0]), {}, "each name once",
    ),
    "logs something else for other sizes": (
        lambda: Net(lambda m, x, _: m.log(f"n{len(x)}", 1.0)), {}, "the same names",
    ),
    "changes the parameter head.weight": (lambda: Net(clamp), {}, "leave parameters to the optimizer"),
    "changes the module itself": (lambda: Net(count, counter=0), {}, "register_buffer in __init__"),
    "norm is a SyncBatchNorm": (
        lambda: Net(lambda m, x, _: m.norm(x).sum(), norm=nn.SyncBatchNorm(6)), {}, "use BatchNorm1d",
    ),
    "depends on a tensor's value (`if`, `.item()`) (test_remedies.py:": (
        lambda: Net(lambda m, x, _: x.sum().item()), {}, "torch.where(condition, a, b)",
    ),
    "depends on a tensor's value (`if`, `.item()`)": (
        lambda: Net(lambda m, x, _: x.sum() if x.sum() > 0 else None), {}, "torch.where",
    ),
    "depends on a tensor's value": (
        lambda: Net(lambda m, x, _: m.norm(x).sum(), norm=nn.BatchNorm1d(6, momentum=None)),
        {}, "momentum=None needs such a number",
    ),
    "fails for a batch of 11 (ValueError: boom (test_remedies.py:": (
        lambda: Net(fails), {}, "correct this error",
    ),
    "something else for": (
        lambda: Net(lambda m, x, _: x.sum() * (len(x) % 3)), {}, "let no value and no shape",
    ),
    "vmap cannot take histc of many clients at once (test_remedies.py:": (
        lambda: Net(lambda m, x, _: torch.histc(x.detach(), 4).sum() * 1e-9), {},
        "replace this call by others",
    ),
    "cannot be traced (RuntimeError: Cannot": (
        lambda: Net(lambda m, x, _: float(x.detach().numpy().sum())), {}, "PyTorch's calls on tensors",
    ),
}  # fmt: skip

DIRECT: dict[str, tuple[Callable[[], pl.LightningModule], str]] = {
    "the module has no training_step": (Stepless, "return the loss of the batch"),
    "uses self.trainer.callback_metrics": (
        lambda: Net(lambda m, *_: m.trainer.callback_metrics and None), "do without it",
    ),
    "sets self.trainer.should_stop": (
        lambda: Net(lambda m, *_: setattr(m.trainer, "should_stop", True)), "do without it",
    ),
    "its scheduler steps in a way of its own": (
        lambda: Net(optimizer=scheduled(lambda o: STEP(o, lambda _: 1.0), frequency=0)),
        "an interval of 'step' or 'epoch'",
    ),
    "logs something else for other batches": (
        lambda: Net(lambda m, x, i: m.log(f"at {i}", 1.0)), "the same names",
    ),
}  # fmt: skip

OTHERS = {
    "training_step draws random numbers on another device": "draw on the device of the batch",
    "there is not enough memory to prepare its step for many clients at once": "lower train.batch-size",
    NOT_FASTER: "none needed: the faster one",
    "train.engine = 'direct' requests the other": "leave train.engine at 'auto'",
    "the transform t.py:t returned inputs of shape {} for one batch and {} for another": "one shape",
    "training_step cannot be traced (RuntimeError: NYI: querying is_contiguous inside of vmap)": (
        "PyTorch has no form of this call"
    ),
}


@pytest.mark.parametrize("reason", STACKED)
def test_a_reason_against_stacking_has_its_remedy(reason: str) -> None:
    make, keys, remedy = STACKED[reason]
    found = Candidates(make(), Train.model_validate(keys), X, Y).stacked()
    assert isinstance(found, str)
    assert reason in found
    assert remedy in str(remedy_of(found))


@pytest.mark.parametrize("reason", DIRECT)
def test_a_reason_for_the_trainer_has_its_remedy(reason: str) -> None:
    make, remedy = DIRECT[reason]
    found = Candidates(make(), Train(), X, Y).direct()
    assert isinstance(found, str)
    assert found.startswith((reason, f"training_step {reason}"))
    assert remedy in str(remedy_of(found))


def test_few_steps_have_their_remedy() -> None:
    found = Candidates(Net(), Train(), X, Y, work=Work(1, 1, 1)).stacked()
    assert "1 training steps in all are too few" in str(found)
    assert "none needed: tracing" in str(remedy_of(str(found)))


@pytest.mark.parametrize("reason", OTHERS)
def test_the_other_reasons_have_their_remedies(reason: str) -> None:
    assert OTHERS[reason] in str(remedy_of(reason))
    assert remedy_of("the moon is full") is None


def test_every_remedy_is_of_a_reason_above() -> None:
    read = [*(remedy for *_, remedy in STACKED.values()), *(r for _, r in DIRECT.values())]
    read += [*OTHERS.values(), "none needed: tracing"]
    unread = [text for _, text in remedies._REMEDIES if not any(part in text for part in read)]
    assert unread == []
