"""``16-mixed`` of clients that train together: each leaves out its own steps, as a Trainer would.

A run on a CPU has ``bf16-mixed`` in its place. The trainers themselves take float16 on a CPU, too.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from tests.test_cohort import (
    OPTIMIZERS,
    X32,
    Clients,
    Net,
    Y,
    alone,
    apart,
    built,
    of,
    threads,
    together,
)

from flsimulation.experiment.spec import Train
from flsimulation.host.quiet import quiet_lightning
from flsimulation.models.lightning_modules import SILENT
from flsimulation.training.batches import Batches
from flsimulation.training.direct_trainer import DirectTrainer
from flsimulation.training.jobs import State
from flsimulation.training.stacked.scaling import Scales
from flsimulation.training.stacked.trainer import StackedTrainer

__all__ = ["threads"]  # one thread, so that the clients are one wave

pytestmark = pytest.mark.seconds

SIZES = (12, 12, 9, 4)
LARGE = X32.clone()
LARGE[:12] *= 40  # the first client's gradients overflow at the first scales
LARGE[24:30] *= 15


def by_trainer(module: Any, batches: Batches, spec: Train) -> State:
    """One client's model by Lightning's Trainer in float16."""
    quiet_lightning()
    own = copy.deepcopy(module)
    pl.Trainer(
        accelerator="cpu",
        plugins=[MixedPrecision("16-mixed", "cpu")],
        max_epochs=spec.epochs,
        accumulate_grad_batches=spec.accumulate,
        gradient_clip_val=spec.gradient_clip or None,
        logger=SILENT,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(own, batches)
    return {name: value.detach() for name, value in own.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("sgd", {}),
        ("momentum", {"accumulate": 3}),
        ("adam", {"gradient_clip": 0.3}),
        ("nadam", {}),
        ("adagrad", {}),
        ("exponential-by-step", {"accumulate": 2}),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_steps_that_overflow_are_left_out_as_by_the_trainer(
    name: str, train: dict[str, Any]
) -> None:
    module, clients = built(Net, OPTIMIZERS[name]), Clients(SIZES, x=LARGE)
    spec = Train(epochs=4, batch_size=4, precision="16-mixed", **train)
    state = module.state_dict()
    ours = together(StackedTrainer(module, spec, LARGE, Y), state, clients.batches())
    direct = alone(DirectTrainer(module, spec), state, clients.batches())  # type: ignore[arg-type]
    for own, other, batches in zip(ours, direct, clients.batches(), strict=True):
        assert apart(own[1], other[1]) <= 1e-2
        assert own[0].steps == other[0].steps
        assert apart(other[1], by_trainer(module, batches, spec)) == 0


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_a_client_leaves_out_its_step_and_its_neighbours_take_theirs(mu: float) -> None:
    module, clients = built(Net, of(torch.optim.Adam, lr=0.01)), Clients((12, 4), 12, LARGE)
    trainer = StackedTrainer(module, Train(batch_size=12, precision="16-mixed"), LARGE, Y)
    start = module.state_dict()
    (_, left), (fit, taken) = together(trainer, start, clients.batches(), proximal_mu=mu)
    assert all(torch.equal(value, start[name]) for name, value in left.items())
    assert fit.steps == 1
    for name, value in taken.items():  # Adam's first step
        torch.testing.assert_close((value - start[name]).abs().max(), torch.tensor(0.01))


def test_scales_are_those_of_grad_scaler() -> None:
    turns = np.random.default_rng(0).random((4_100, 2)) > np.array([0.0005, 0.0])
    ours = Scales(2, 4, torch.device("cpu"))
    scalers = [torch.amp.GradScaler("cpu") for _ in range(2)]
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in parameters]
    for finite in turns:
        for scaler, parameter, optimizer, own in zip(
            scalers, parameters, optimizers, finite, strict=True
        ):
            scaler.scale(torch.zeros(()))
            parameter.grad = torch.full((1,), 1.0 if own else torch.inf)
            scaler.step(optimizer)
            scaler.update()
        ours.update(torch.from_numpy(finite))
        assert ours.of(0, 2).tolist() == [scaler.get_scale() / 4 for scaler in scalers]
    assert ours.of(1, 2).item() == 2.0**18 / 4
