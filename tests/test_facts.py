"""What a Trainer knows and does around a step, of clients that train together: as for each alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import TickingClock
from tests.test_cohort import (
    OPTIMIZERS,
    X32,
    Clients,
    Net,
    X,
    Y,
    alone,
    assert_alike,
    assert_equal,
    built,
    of,
    one_trace,
    refusal,
    scheduled,
    threads,
    together,
)
from tests.test_draws import Between, _part
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from flsimulation.experiment.spec import Train
from flsimulation.training import Batches
from flsimulation.training.jobs import Job
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.stacked.engine import StackedEngine
from flsimulation.training.stacked.trainer import StackedTrainer

__all__ = ["one_trace", "threads"]  # one thread for every test here

pytestmark = [pytest.mark.seconds, pytest.mark.slow]

DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]

# --- gradients that are added up ------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("accumulate", "epochs"), [(2, 1), (3, 2), (4, 3), (50, 2)])
@pytest.mark.parametrize("name", ["sgd", "adam", "momentum"])
def test_gradients_added_up_over_batches_equal_the_trainers(
    name: str, accumulate: int, epochs: int, dtype: torch.dtype, tolerance: float
) -> None:
    clients = Clients((29, 17, 4, 9, 1, 29), x=X.to(dtype))  # 8, 5, 1, 3, 1 and 8 batches
    module = built(Net, OPTIMIZERS[name], dtype=dtype)
    assert_equal(module, clients, tolerance, epochs=epochs, accumulate=accumulate)


def test_steps_are_those_of_the_optimizer() -> None:
    module, clients = built(Net), Clients((29, 17, 4, 9, 1))
    trainer = StackedTrainer(module, Train(batch_size=4, epochs=2, accumulate=3), X32, Y)
    found = together(trainer, module.state_dict(), clients.batches())
    assert [result.steps for result, _ in found] == [6, 4, 2, 2, 2]


def test_a_client_whose_step_is_not_taken_in_time_is_late() -> None:
    module, clients = built(Net), Clients((12, 4, 8))  # 3, 1 and 2 batches of one step each
    spec = Train(batch_size=4, accumulate=3)
    trainer = StackedTrainer(module, spec, X32, Y, TickingClock())
    found = together(trainer, module.state_dict(), clients.batches(), expires=1.5)
    assert [getattr(result, "reason", "") for result, _ in found] == ["deadline"] * 3
    found = together(trainer, module.state_dict(), clients.batches(), expires=1e9)
    assert [result.steps for result, _ in found] == [1, 1, 1]


@pytest.mark.parametrize(("mu", "clip"), [(2.0, 0.0), (0.0, 0.05), (2.0, 0.05)])
def test_added_up_gradients_are_clipped_and_drawn_at_the_step(mu: float, clip: float) -> None:
    clients = Clients((17, 8, 9))
    assert_equal(built(Net), clients, mu=mu, gradient_clip=clip, epochs=2, accumulate=2)


def warm_up(**config: Any) -> Callable[[Any], Any]:
    """SGD whose rate grows with the steps that the Trainer expects."""

    def configure(module: Any) -> Any:
        total = module.trainer.estimated_stepping_batches
        assert module.trainer.accumulate_grad_batches == 3
        return scheduled(
            lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / total)), **config
        )(module)

    return configure


@pytest.mark.parametrize(
    "optimizer",
    [
        OPTIMIZERS["exponential-by-step"],
        OPTIMIZERS["step-by-second-step"],
        OPTIMIZERS["step-by-second-epoch"],
        OPTIMIZERS["cosine"],
        warm_up(interval="step"),
    ],
)
def test_schedulers_step_when_the_optimizer_does(optimizer: Any) -> None:
    clients = Clients((29, 17, 29, 9))
    assert_equal(built(Net, optimizer), clients, epochs=3, accumulate=3)


class Shared(Net):
    """Two biases with one gradient, and a weight that nothing depends on."""

    def __init__(self) -> None:
        super().__init__(of(torch.optim.SGD, lr=0.2, momentum=0.5, weight_decay=0.1))
        self.one, self.two = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
        self.idle = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (self.one + self.two)


def test_gradients_that_two_share_and_none_are_added_up() -> None:
    assert_equal(built(Shared), Clients((17, 8, 9)), epochs=2, accumulate=2)


# --- precision ------------------------------------------------------------------------------------

BUFFERED = {
    "dropout": nn.Dropout(0.3),
    "batch norm": nn.BatchNorm1d(5),
    "layer norm": nn.LayerNorm(5),
}


@pytest.mark.parametrize("name", ["sgd", "adam", "momentum"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_equal_the_trainers(precision: Any, name: str) -> None:
    tolerance = 1e-7 if precision == "64-true" else 2e-2
    trainer = assert_equal(built(Net, OPTIMIZERS[name]), tolerance=tolerance, precision=precision)
    (wave,) = trainer.fit(built(Net).state_dict(), Clients().batches())
    assert {value.dtype for value in wave.weights.values()} == {torch.float32}


@pytest.mark.parametrize("part", BUFFERED)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_parts_in_other_precisions_equal_the_trainers(precision: Any, part: str) -> None:
    tolerance = 1e-7 if precision == "64-true" else 2e-2
    module = built(Between, _part, part=BUFFERED[part])
    assert_equal(module, Clients((11, 4, 7, 8)), tolerance, precision=precision, epochs=1)


class Typed(Net):
    """Logs in what types it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 2, 3), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        features = self.norm(self.conv(batch[0][:, None]))
        attended, _ = self.attention(features, features, features, need_weights=False)
        loss = super().training_step(batch, batch_idx) + functional.mse_loss(attended, features)
        values = [batch[0], self(batch[0]), self.layer_1.weight, torch.ones(1), features, attended]
        for place, value in enumerate([*values, loss]):
            self.log(f"bits_{place}", float(torch.finfo(value.dtype).bits))
        return loss


TYPES = {
    "bf16-mixed": [32, 16, 32, 32, 16, 16, 32],
    "bf16-true": [16] * 7,
    "64-true": [64] * 7,
}


@pytest.mark.parametrize("precision", TYPES)
def test_steps_compute_in_the_types_of_the_trainers(precision: Any) -> None:
    module, clients = built(Typed), Clients((9, 4))
    trainer = assert_equal(module, clients, 2e-2, precision=precision, epochs=1)
    for result, _ in together(trainer, module.state_dict(), clients.batches()):
        assert [result.scores[f"bits_{place}"] for place in range(7)] == TYPES[precision]


class Evaluated(Net):
    """Logs the type of what it computes, as a number."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("bits", float(torch.finfo(logits.dtype).bits))
        self.log("val_loss", functional.cross_entropy(logits, batch[1]))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_evaluations_are_in_the_precision_of_the_training(precision: Any) -> None:
    module, spec = built(Evaluated), Train(batch_size=4, precision=precision)
    parts = [np.arange(12), np.arange(20, 32), np.arange(40, 45)]
    jobs = [Job(number, Batches(X32, Y, part, 4), seed=int) for number, part in enumerate(parts)]
    engine = StackedEngine(module, spec, X32, Y)
    found: dict[int, Any] = {}
    for scored in engine.evaluate(module.state_dict(), jobs):
        found |= scored
    for job in jobs:
        alone = LocalTrainer(module, spec).evaluate(module.state_dict(), job.batches)
        assert alone["bits"] == (64 if precision == "64-true" else 16)
        assert found[job.partition] == pytest.approx(
            alone, rel=1e-6 if alone["bits"] > 16 else 1e-2
        )


# --- numbers of the fit ---------------------------------------------------------------------------


class Knowing(Net):
    """Its loss has a term of what it knows of the fit."""

    def __init__(self, act: Callable[..., Any], optimizer: Any = None) -> None:
        super().__init__(optimizer)
        self.act = act

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return self.act(self, loss, self(batch[0]).square().mean(), batch_idx)


def logs(module: Any, loss: torch.Tensor, size: torch.Tensor, number: int) -> torch.Tensor:
    module.log("step", module.global_step, on_epoch=True, reduce_fx="sum")
    module.log("share", (module.global_step + 1) / 3, on_epoch=True)
    module.log("epoch", module.current_epoch)
    scaled = loss * (module.global_step + 0.5)
    module.log("bits", float(torch.finfo(scaled.dtype).bits))
    return loss + torch.tensor(0.1 * module.current_epoch)


def with_integers(module: Any, loss: torch.Tensor, size: torch.Tensor, number: int) -> torch.Tensor:
    places = torch.arange(3) + number
    return loss + (places * 0.1 * number).sum() * size + (places % (number + 2)).sum() * size


KNOWN: dict[str, Callable[..., Any]] = {
    "epoch": lambda m, v, s, i: v + 0.1 * m.current_epoch * s,
    "step": lambda m, v, s, i: v + s * 0.9 ** m.global_step,
    "round": lambda m, v, s, i: v / (m.federated_round + 1) + s * (1 - m.federated_round),
    "number": lambda m, v, s, i: v * (i + 1) - s * (-i // 3) + s * i % 2,
    "annealed": lambda m, v, s, i: (
        v + s * torch.clamp(torch.tensor(m.global_step / 4), max=1.0)
    ),
    "of the trainer": lambda m, v, s, i: (
        v + s * m.trainer.global_step / m.trainer.estimated_stepping_batches
        + s * (m.trainer.current_epoch + i / m.trainer.num_training_batches) / m.trainer.max_epochs
    ),
    "in a function": lambda m, v, s, i: torch.where(torch.tensor(m.current_epoch > 0), v, v + s),
    "in place": lambda m, v, s, i: s.mul(m.global_step).add_(m.current_epoch).mul(0.1) + v,
    "truths": lambda m, v, s, i: (
        v + s * ((i > 0) + (m.global_step > 2) + (i != 2) * (i <= m.current_epoch))
    ),
    "powers": lambda m, v, s, i: v + s * (1 + m.global_step) ** -0.5 + s * (2**i) / 7,
    "logged": logs,
    "integers": with_integers,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:You called `self.log:UserWarning")
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", KNOWN)
def test_numbers_of_the_fit_equal_the_trainers(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    clients = Clients((17, 4, 9, 1), x=X.to(dtype))
    module = built(Knowing, KNOWN[kind], of(torch.optim.SGD, lr=0.05), dtype=dtype)
    assert_equal(module, clients, tolerance, epochs=3, rounds=2)


@pytest.mark.parametrize("kind", ["step", "of the trainer"])
def test_numbers_of_the_fit_count_the_optimizers_steps(kind: str) -> None:
    module = built(Knowing, KNOWN[kind], OPTIMIZERS["adam"])
    assert_equal(module, Clients((17, 4, 9, 1)), epochs=3, accumulate=2)


def test_the_round_of_a_fit_is_its_number() -> None:
    module, clients = built(Knowing, KNOWN["round"]), Clients((9, 4))
    spec = Train(batch_size=4, epochs=2)
    one = together(
        StackedTrainer(module, spec, X32, Y), module.state_dict(), clients.batches(), round=4
    )
    two = alone(LocalTrainer(module, spec), module.state_dict(), clients.batches(), round=4)
    for own, other in zip(one, two):
        assert_alike(own, other, 1e-5)


def test_only_what_is_computed_with_is_an_input() -> None:
    trainer = StackedTrainer(built(Knowing, KNOWN["step"]), Train(), X32, Y)
    assert trainer._stack.programs.names.facts == ["global_step"]
    assert not trainer._goes_by_epochs
    assert StackedTrainer(built(Net), Train(), X32, Y)._stack.programs.names.facts == []


NEEDED: dict[str, tuple[Callable[..., Any], str]] = {
    "if": (lambda m, v, s, i: v if m.current_epoch > 1 else s, r"uses self.current_epoch"),
    "number": (lambda m, v, s, i: v if i == 0 else s, r"uses batch_idx"),
    "min": (lambda m, v, s, i: v * min(1.0, m.global_step / 9), r"uses self.global_step"),
    "range": (lambda m, v, s, i: sum((v for _ in range(i)), v), r"uses batch_idx"),
    "format": (
        lambda m, v, s, i: (m.log(f"at {m.federated_round}", v), v)[1],
        "uses self.federated_round",
    ),
    "index": (lambda m, v, s, i: v + m.layer_2.bias[m.global_step % 3], "uses self.global_step"),
    "total": (
        lambda m, v, s, i: v if m.trainer.num_training_batches > 2 else s,
        r"uses self.trainer.num_training_batches",
    ),
}


@pytest.mark.parametrize("kind", NEEDED)
def test_a_step_that_must_know_a_number_is_refused_with_its_line(kind: str) -> None:
    act, reason = NEEDED[kind]
    text = refusal(built(Knowing, act))
    assert re.match(rf"training_step {reason} otherwise than in sums", text), text
    assert re.search(r"\(test_facts.py:\d+\)$", text), text


def test_what_only_a_number_has_is_refused() -> None:
    act: Any = lambda m, v, s, i: v * "abc".find("c", m.global_step)  # noqa: E731
    assert "uses self.global_step otherwise" in refusal(built(Knowing, act))
    act = lambda m, v, s, i: v + s.expand(m.global_step + 1).sum()  # noqa: E731
    assert "uses global_step as what only a number is (test_facts" in refusal(built(Knowing, act))
    text = refusal(built(Knowing, lambda m, v, s, i: v * len(m.trainer.callbacks)))
    assert text.startswith("training_step uses self.trainer.callbacks (test_facts.py:")


# --- hooks ----------------------------------------------------------------------------------------


class Quiet(Net):
    """Has hooks that do nothing to a client."""

    def setup(self, stage: str) -> None:
        assert stage == "fit"

    def on_train_start(self) -> None:
        self.print("begins", self.trainer.max_epochs)

    def on_train_epoch_end(self) -> None:
        self.logger.experiment.add_scalar("epoch", 1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert len(batch[0]) == len(batch[1])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        _ = outputs["loss"] * (batch_idx + 1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        _ = [p.grad.norm() for group in optimizer.param_groups for p in group["params"]]

    def train_dataloader(self) -> Any:
        raise AssertionError("not used")

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        checkpoint["own"] = 1


def test_hooks_that_change_nothing_are_left_out() -> None:
    assert_equal(built(Quiet), Clients((9, 4, 7)))


def hooked(name: str, act: Callable[..., Any]) -> Any:
    """A module with one hook of its own."""
    return type("Hooked", (Net,), {name: lambda self, *args, **_: act(self, *args)})


def _scale(module: Any, *_: Any) -> None:
    for p in module.parameters():
        p.grad.mul_(0.5)


def _through_data(module: Any, *_: Any) -> None:
    module.layer_1.weight.data.clamp_(-0.01, 0.01)


CHANGING: dict[str, tuple[str, Callable[..., Any], str]] = {
    "attribute": ("on_train_epoch_end", lambda m: setattr(m, "n", 1), "changes something"),
    "list": ("on_train_batch_end", lambda m, o, *_: m.__dict__.setdefault("k", []).append(o), "ch"),
    "gradients": ("on_after_backward", _scale, "changes something"),
    "weights": ("on_train_batch_start", _through_data, "changes something"),
    "frozen": ("on_train_start", lambda m: m.layer_1.requires_grad_(False) and None, "changes"),
    "mode": ("on_train_epoch_start", lambda m: m.layer_1.eval() and None, "changes something"),
    "log": ("on_train_epoch_end", lambda m: m.log("epoch", 1.0), "changes something"),
    "rates": (
        "on_before_optimizer_step", lambda m, o: o.param_groups[0].update(lr=0.1), "changes some",
    ),
    "drawn": ("on_fit_start", lambda m: (torch.rand(1), None)[1], "changes something"),
    "stops": ("on_train_batch_start", lambda *_: -1, "changes something"),
    "trainer": (
        "on_train_epoch_end", lambda m: setattr(m.trainer, "should_stop", True),
        "changes self.trainer.should_stop",
    ),
    "epoch": (
        "on_train_epoch_start", lambda m: _scale(m) if m.current_epoch > 5 else None,
        "uses self.current_epoch otherwise",
    ),
    "number": (
        "on_train_batch_end", lambda m, o, b, i: _scale(m) if i == 9 else None, "uses batch_idx",
    ),
    "value": (
        "on_before_backward", lambda m, loss: _scale(m) if loss > 100 else None, "reads values",
    ),
    "listed": ("on_before_backward", lambda m, loss: loss.tolist() and None, "reads values"),
    "raises": ("on_train_end", lambda m: [][1], "IndexError"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGING)
def test_hooks_that_may_change_something_are_refused_by_name(kind: str) -> None:
    name, act, reason = CHANGING[kind]
    text = refusal(built(hooked(name, act)))
    assert re.match(rf"the module has a {name} of its own, which .*({reason})", text), text


def clipping(act: Callable[..., Any]) -> Any:
    """A module that clips its gradients itself."""

    class Clipping(Net):
        def configure_gradient_clipping(
            self,
            optimizer: Any,
            gradient_clip_val: Any = None,
            gradient_clip_algorithm: Any = None,
        ) -> None:
            act(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    return Clipping


CLIPPING: dict[str, tuple[Callable[..., Any], float]] = {
    "norm": (
        lambda m, o, v, a: m.clip_gradients(o, gradient_clip_val=0.05, gradient_clip_algorithm="norm"), 0,
    ),
    "value": (
        lambda m, o, v, a: m.clip_gradients(o, gradient_clip_val=0.02, gradient_clip_algorithm="value"), 0,
    ),
    "both": (
        lambda m, o, v, a: (m.clip_gradients(o, 0.02, "value"), m.clip_gradients(o, 0.05, "norm")), 0,
    ),
    "as set": (lambda m, o, v, a: m.clip_gradients(o, v, "value"), 0.03),
    "none": (lambda m, o, v, a: None, 0.01),
    "by default": (lambda m, o, v, a: m.clip_gradients(o), 0.05),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLIPPING)
@pytest.mark.parametrize(("mu", "accumulate"), [(0.0, 1), (0.5, 2)])
def test_own_clipping_equals_the_trainers(kind: str, mu: float, accumulate: int) -> None:
    act, most = CLIPPING[kind]
    module, clients = built(clipping(act), dtype=torch.float64), Clients((17, 8, 9), x=X)
    assert_equal(module, clients, 1e-12, mu=mu, gradient_clip=most, accumulate=accumulate)


def test_clipping_that_cannot_be_followed_is_refused() -> None:
    act: Any = lambda m, o, v, a: m.clip_gradients(o, 1.0 / (m.current_epoch + 1))  # noqa: E731
    assert "uses self.current_epoch otherwise" in refusal(built(clipping(act)))
    act = lambda m, o, v, a: nn.utils.clip_grad_norm_(m.parameters(), 0.01) and None  # noqa: E731
    text = refusal(built(clipping(act)))
    assert text.startswith("the module has a configure_gradient_clipping of its own, which ")


# --- optimizers -----------------------------------------------------------------------------------


def grouped(
    cls: Callable[..., Any], scheduler: Callable[..., Any] | None = None, **args: Any
) -> Any:
    """An optimizer with a group for each layer, and a third for the second layer's bias."""

    def configure(module: Any) -> Any:
        groups = [
            {"params": module.layer_1.parameters(), "lr": 0.02, **args},
            {"params": [module.layer_2.weight]},
            {"params": [module.layer_2.bias], "weight_decay": 0.0, "lr": 0.05},
        ]
        optimizer = cls(groups, lr=0.01, weight_decay=0.1)
        return optimizer if scheduler is None else ([optimizer], [scheduler(module, optimizer)])

    return configure


def by_step(scheduler: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step"}


def one_cycle(module: Any, optimizer: Any) -> Any:
    total = module.trainer.estimated_stepping_batches
    return by_step(lr_scheduler.OneCycleLR(optimizer, [0.05, 0.1, 0.2], total_steps=total))


LAMBDAS = [lambda step: 0.9**step, lambda step: 1 / (step + 1), lambda step: 1.0]
Adam, AdamW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
CONFIGURED: dict[str, Any] = {
    "groups": grouped(AdamW, betas=(0.8, 0.9)),
    "groups, SGD": grouped(SGD, momentum=0.9, nesterov=True),
    "groups, cycle": grouped(Adam, one_cycle),
    "groups, lambdas": grouped(
        SGD, lambda m, o: by_step(lr_scheduler.LambdaLR(o, LAMBDAS)), momentum=0.5
    ),
    "groups, lambdas by epoch": grouped(Adam, lambda m, o: lr_scheduler.LambdaLR(o, LAMBDAS)),
    "linear": scheduled(lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4), interval="step"),
    "linear by epoch": scheduled(lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=2)),
    "warm-up, then cosine": scheduled(
        lambda o: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 9)],
            [3],
        ),
        interval="step",
    ),
    "chained": scheduled(
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
        )
    ),
    "restarts": scheduled(
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2), interval="step"
    ),
    "cyclic": scheduled(lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.3, 3), interval="step"),
    "two schedulers": lambda m: (
        [o := SGD(m.parameters(), lr=0.3, momentum=0.5)],
        [by_step(lr_scheduler.ExponentialLR(o, 0.97)), lr_scheduler.StepLR(o, 1, 0.5)],
    ),
    "amsgrad": of(AdamW, lr=0.02, amsgrad=True, weight_decay=0.1, maximize=False),
    "adam, one by one": of(Adam, lr=0.02, foreach=False),
    "adam, fused": of(Adam, lr=0.02, fused=True, weight_decay=0.1),
    "sgd, fused": of(SGD, lr=0.1, fused=True, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd, foreach": of(SGD, lr=0.1, foreach=True, momentum=0.9),
    "rmsprop, foreach": of(torch.optim.RMSprop, lr=0.01, foreach=True, weight_decay=0.1),
    "nadam": of(torch.optim.NAdam, lr=0.02, decoupled_weight_decay=True, weight_decay=0.1),
    "tensor rate": of(Adam, lr=torch.tensor(0.02)),
}


@pytest.mark.usefixtures("one_trace")
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", CONFIGURED)
def test_groups_schedulers_and_options_equal_the_trainers(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    clients = Clients((17, 4, 9, 18), x=X.to(dtype))
    assert_equal(built(Net, CONFIGURED[kind], dtype=dtype), clients, tolerance, epochs=3)


def test_a_scheduler_that_goes_by_a_metric_is_refused() -> None:
    reduce = scheduled(lambda o: lr_scheduler.ReduceLROnPlateau(o), monitor="loss")
    assert refusal(built(Net, reduce)) == "its scheduler goes by a metric"
