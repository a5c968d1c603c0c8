"""What a Trainer knows and does around a step, of clients that train together: as for each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.test_cohort import (
    OPTIMIZERS,
    X32,
    Clients,
    Net,
    X,
    Y,
    assert_equal,
    built,
    of,
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

__all__ = ["threads"]  # one thread for every test here

pytestmark = pytest.mark.seconds

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


def test_a_scaled_loss_is_each_clients_own() -> None:
    reason = refusal(built(Net), precision="16-mixed")
    assert reason == "train.precision = '16-mixed' scales each client's loss by its gradients"


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
