"""How many examples an evaluation takes at once, and that no score depends on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from flsimulation import run
from flsimulation.client.workspace import Workspace
from flsimulation.events import RoundFinished
from flsimulation.experiment import Experiment
from flsimulation.training.footprint import examples_within_budget

MIB = 2**20

MODELS = """
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

class Large(pl.LightningModule):
    # blows each example up to SIZE bytes, and drops them again
    SIZE = 16 * 2**20
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)
    def forward(self, x):
        grown = x[:, :1].expand(-1, self.SIZE // 4).contiguous()
        return self.layer(x) + 0 * grown.mean(1, keepdim=True)
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.layer(batch[0]), batch[1])
    def validation_step(self, batch, batch_idx):
        out = self(batch[0])
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("size", float(len(out)), on_epoch=True, reduce_fx="max")
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Trainers(Large):
    # its evaluation needs a Trainer, its forward pass does not
    def validation_step(self, batch, batch_idx):
        self.trainer.num_val_batches
        super().validation_step(batch, batch_idx)

class Unknown(Trainers):
    def forward(self, x):
        self.trainer.num_val_batches
        return self.layer(x)
"""


@pytest.fixture
def large(own_modules: Any, make_experiment: Any) -> Callable[..., Experiment]:
    """An experiment whose evaluation of an example takes 16 MiB."""
    path = own_modules(MODELS, "large.py")

    def make(name: str = "Large", **tables: Any) -> Experiment:
        model = {"class": f"{path}:{name}", "args": {}}
        tables["train"] = {"engine": "lightning", **tables.get("train", {})}
        tables["data"] = {"validation-fraction": 0.0}
        return Experiment.model_validate(make_experiment(model=model, **tables))

    return make


def test_a_batch_of_an_evaluation_holds_what_the_budget_allows(large: Any) -> None:
    # 256 MiB of 16 MiB each, and of a little more
    assert Workspace.load(large()).evaluation_batch == 15
    assert Workspace.load(large("Trainers")).evaluation_batch == 15


def test_small_models_are_evaluated_in_batches_of_a_thousand(make_experiment: Any) -> None:
    for name in ("mlp", "logistic", "2nn"):
        model = {"class": name, "args": {}}
        experiment = make_experiment(model=model, train={"engine": "lightning"})
        assert Workspace.load(experiment).evaluation_batch == 1000


def test_the_experiment_may_say_the_size_itself(large: Any) -> None:
    assert Workspace.load(large(evaluate={"batch-size": 7})).evaluation_batch == 7


def test_where_nothing_can_be_measured_it_is_the_size_of_trainings_batches(large: Any) -> None:
    space = Workspace.load(large("Unknown", train={"batch-size": 9}))
    assert space.evaluation_batch == 9


@pytest.mark.seconds
def test_no_score_depends_on_the_size(large: Any, tmp_path: Path, recorder: Any) -> None:
    for size in (0, 7, 60):
        experiment = large(evaluate={"batch-size": size}, strategy={"rounds": 1})
        run(experiment, tmp_path / str(size), [recorder])
    ends = recorder.of(RoundFinished)
    assert [end.central["size"] for end in ends] == [15, 7, 60]
    losses = [end.central["loss"] for end in ends]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert len({end.weights_sha256 for end in ends}) == 1


class Steps(pl.LightningModule):
    """Its evaluation holds the products of two matrices."""

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self.keep, self.norm = keep, nn.BatchNorm1d(1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        held = []
        for _ in range(8):
            made = batch[0].expand(-1, MIB).contiguous()  # 4 MiB per example
            if self.keep:
                held.append(made)
            del made
        self.log("val_loss", self.norm(batch[0]).sum())


@pytest.mark.parametrize(("keep", "most"), [(False, 63), (True, 7)])
def test_what_exists_at_a_time_counts_and_not_all_that_was_written(
    keep: bool,
    most: int,
) -> None:
    module, batch = Steps(keep=keep), (torch.ones(2, 1), torch.zeros(2, dtype=torch.int64))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = [examples_within_budget(module, batch, 1) for _ in range(3)]
    assert found == [most] * 3
    assert examples_within_budget(module, batch, 1, times=10) in range(10 * most, 10 * most + 10)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_attention_counts_with_all_its_parts() -> None:
    class Attends(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dropout=0.0)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            weights = torch.zeros(len(batch[0]) * 2, 512, 512)  # a mask per head: no fast kernel
            self.log("val_loss", self.layer(batch[0], src_mask=weights).mean())

    x = torch.from_numpy(np.zeros((2, 512, 8), np.float32))
    # a mask and the weights of two heads are 1 MiB each per head and example
    assert 8 <= examples_within_budget(Attends(), (x, x), 1) <= 128
