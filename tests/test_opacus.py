"""DP-SGD beside Opacus, which computes each example's gradient and the clipped step in its own way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus import GradSampleModule
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPOptimizer
from torch.nn import functional

from flsimulation import load_experiment
from flsimulation.client.workspace import Workspace
from flsimulation.experiment import Experiment
from flsimulation.privacy.accountant import Mechanism, epsilon_of
from flsimulation.training import Terms

pytestmark = [pytest.mark.seconds, pytest.mark.filterwarnings("ignore")]

OWN = """
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional

class Base(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.net = self.made()
    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

class Dense(Base):
    def made(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.Tanh(), nn.Linear(12, 10))

class Convolved(Base):
    def made(self):
        return nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(),
            nn.Conv2d(4, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.ReLU(), nn.Flatten(),
            nn.LayerNorm(363), nn.Linear(363, 10),
        )

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(4, 5), nn.Linear(5, 10)
    def forward(self, x):
        return self.out(self.table((x.flatten(1)[:, 300:320].clamp(0, 1) * 3).long()).mean(1))

class Embedded(Base):
    def made(self):
        return Words()
"""
CLIP = 0.3


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Experiment]:
    (tmp_path / "own_opacus.py").write_text(OWN)

    def make(model: str) -> Experiment:
        return load_experiment(
            None,
            [
                *(f"model.class={tmp_path / 'own_opacus.py'}:{model}", "data.clients=2"),
                *("data.examples-per-client=50", "train.device=cpu", "train.batch-size=64"),
                *("privacy.mode=example", f"privacy.clip={CLIP}", "privacy.noise-multiplier=1e-9"),
            ],
        )

    return make


@pytest.mark.parametrize("model", ["Dense", "Convolved", "Embedded"])
@pytest.mark.parametrize("engine", ["stacked", "direct"])
def test_a_step_is_that_of_opacus(
    made: Callable[[str], Experiment], model: str, engine: str
) -> None:
    experiment = made(model)
    train = experiment.train.model_copy(update={"engine": engine})
    space = Workspace.load(experiment.model_copy(update={"train": train}))
    jobs, start = [space.train_job(partition, 1) for partition in (0, 1)], space.initial_state()
    results: dict[int, Any] = {}
    for found in space.engine.fit(start, jobs, Terms()):
        results |= found.results
    for job in jobs:
        (batch,) = list(job.batches)
        x, y = batch[0], batch[1]
        space.module.load_state_dict(start)
        net: Any = GradSampleModule(space.module.net, batch_first=True, loss_reduction="mean")
        sgd = torch.optim.SGD(net.parameters(), lr=0.5)
        optimizer = DPOptimizer(
            sgd, noise_multiplier=0.0, max_grad_norm=CLIP, expected_batch_size=len(x)
        )
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in net.parameters()]).norm(
            dim=0
        )
        assert (norms > CLIP).any()  # something is clipped
        theirs = {f"net.{name}": p.detach().clone() for name, p in net._module.named_parameters()}
        net.remove_hooks()
        for name, value in theirs.items():
            assert float((results[job.partition].state[name] - value).abs().max()) < 2e-6, name


@pytest.mark.parametrize(
    ("noise", "rate", "steps"), [(1.5, 0.04, 2250), (1.1, 256 / 60_000, 14_063), (0.8, 0.01, 500)]
)
def test_epsilon_is_that_of_opacus(noise: float, rate: float, steps: int) -> None:
    """By Renyi divergences, of fewer orders there, so that its epsilon may be a little larger."""
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    theirs = accountant.get_epsilon(1e-5)
    assert epsilon_of(Mechanism(noise, rate), steps, 1e-5) == pytest.approx(theirs, rel=5e-3)
