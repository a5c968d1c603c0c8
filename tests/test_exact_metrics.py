"""Metric objects over batches and clients: the value over all examples, computed here by hand."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from flsimulation.client.answers import answers
from flsimulation.client.workspace import Workspace
from flsimulation.events import Checkpoint, ClientReplied, Noticed, RoundFinished
from flsimulation.experiment import Experiment, flatten
from flsimulation.messages.packing import pack, unpack
from flsimulation.messages.state_dicts import held_state
from flsimulation.runtimes.inprocess import InProcessGrid, run_in_process
from flsimulation.runtimes.simulated import RUN_ID, SERVER_NODE_ID, flower_identity
from flsimulation.server.app import make_server_app

pytestmark = pytest.mark.seconds

OWN = """
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torchmetrics import MetricCollection, SumMetric
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score, MulticlassPrecision
from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef, R2Score

class Base(pl.LightningModule):
    def __init__(self, thresholds=None):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(6, 3)
        self.val_f1 = MulticlassF1Score(3, average="macro")
        self.val_auroc = BinaryAUROC(thresholds=thresholds)
        self.pair = MetricCollection(
            {"rmse": MeanSquaredError(squared=False), "r2": R2Score(), "pearson": PearsonCorrCoef()}
        ).clone(prefix="val_")
        self.right = SumMetric()

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)

    def gather(self, batch):
        x, y = batch
        out = self.layer(x)
        self.val_f1.update(out, y)
        self.val_auroc.update(out[:, 0].sigmoid(), (y == 0).long())
        self.pair.update(out[:, 1], x[:, 1])
        self.right.update((out.argmax(1) == y).sum())
        return functional.cross_entropy(out, y)

class OnStep(Base):
    def validation_step(self, batch, batch_idx):
        loss = self.gather(batch)
        self.log("val_loss", loss)
        self.log("val_f1", self.val_f1)
        self.log("val_auroc", self.val_auroc, on_step=True, on_epoch=True)
        self.log_dict(self.pair)
        self.log("right", self.right)

class AtEnd(Base):
    def validation_step(self, batch, batch_idx):
        return self.gather(batch)

    def on_validation_epoch_end(self):
        self.log("val_f1", self.val_f1.compute())
        self.log("val_auroc", self.val_auroc.compute())
        self.log_dict(self.pair.compute())
        self.log("right", self.right)
        for metric in (self.val_f1, self.val_auroc, self.pair):
            metric.reset()
"""


def by_hand(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> dict[str, float]:
    """The metrics of these examples, from their definitions."""
    found = out.argmax(1)
    f1 = []
    for label in range(3):
        hits = np.sum((found == label) & (y == label))
        f1.append(2 * hits / (np.sum(found == label) + np.sum(y == label)))
    positive, negative = out[y == 0, 0], out[y != 0, 0]
    above = np.sign(positive[:, None] - negative[None, :])
    errors = out[:, 1] - x[:, 1]
    total = x[:, 1] - x[:, 1].mean()
    shifted = np.exp(out - out.max(1, keepdims=True))
    chosen = (shifted / shifted.sum(1, keepdims=True))[np.arange(len(y)), y]
    return {
        "loss": float(-np.log(chosen).mean()),
        "val_f1": float(np.mean(f1)),
        "val_auroc": float((above / 2 + 0.5).mean()),
        "val_rmse": float(np.sqrt(np.mean(errors**2))),
        "val_r2": float(1 - np.sum(errors**2) / np.sum(total**2)),
        "val_pearson": float(np.corrcoef(out[:, 1], x[:, 1])[0, 1]),
        "right": float(np.sum(found == y)),
    }


class PackedGrid(InProcessGrid):
    """Sends every reply through the form that it has on a network."""

    def pull_messages(self, *arguments: Any, **named: Any) -> Iterable[Message]:
        messages = list(super().pull_messages(*arguments, **named))
        for message in messages:
            message.content = unpack(pack(message.content))
        return messages


def run_packed(experiment: Experiment, sinks: Any, space: Workspace) -> None:
    context = Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(flatten(experiment)))
    with flower_identity():
        grid = PackedGrid(functools.partial(answers, space=space), experiment.data.clients)
        make_server_app(sinks, space)(grid, context)


@pytest.fixture
def make(make_experiment: Any, own_modules: Any) -> Callable[..., Experiment]:
    def experiment(kind: str, args: dict[str, Any] | None = None, **tables: Any) -> Experiment:
        return make_experiment(
            **{
                "data": {
                    "clients": 4,
                    "partition": "exponential",
                    "validation-fraction": 0.5,
                    "min-examples": 4,
                },
                "model": {"class": f"{own_modules(OWN)}:{kind}", "args": args or {}},
                "strategy": {"rounds": 1},
                **tables,
            }
        )

    return experiment


def examples(space: Workspace, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dataset = space.data.dataset
    return dataset.x_train.numpy()[rows], dataset.y_train.numpy()[rows]


def outputs(model: dict[str, torch.Tensor], x: np.ndarray) -> np.ndarray:
    return x @ model["layer.weight"].double().numpy().T + model["layer.bias"].double().numpy()


@pytest.mark.parametrize(
    ("kind", "engine", "start"),
    [
        ("OnStep", "stacked", run_in_process),
        ("OnStep", "lightning", run_in_process),
        ("AtEnd", "stacked", run_in_process),
        ("AtEnd", "lightning", run_in_process),
        ("OnStep", "stacked", run_packed),
    ],
)
def test_the_federated_value_is_that_over_all_examples(
    make: Any, recorder: Any, kind: str, engine: str, start: Any
) -> None:
    experiment = make(kind, train={"engine": engine})
    space = Workspace.load(experiment)
    assert space.engine.name == engine
    start(experiment, [recorder], space)
    model = held_state(recorder.of(Checkpoint)[-1].arrays)
    sizes = [len(space.data.validation_indices(p)) for p in range(4)]
    assert max(sizes) > 10 * min(sizes)
    (finished,) = recorder.of(RoundFinished)

    parts = [space.data.validation_indices(p) for p in range(4)]
    x, y = examples(space, np.concatenate(parts))
    expected = by_hand(x, y, outputs(model, x))
    found = {name: finished.federated[name] for name in expected}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    dataset = space.data.dataset
    x, y = dataset.x_test.numpy(), dataset.y_test.numpy()
    expected = by_hand(x, y, outputs(model, x))
    assert {n: finished.central[n] for n in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6)

    finals = [e for e in recorder.of(ClientReplied) if e.phase == "final"]
    assert [e.partition for e in finals] == list(range(4))
    differs = False
    for event, part in zip(finals, parts, strict=True):
        x, y = examples(space, part)
        with np.errstate(all="ignore"):
            own = by_hand(x, y, outputs(model, x))
        compared = {n: v for n, v in own.items() if n in event.metrics}
        assert {n: event.metrics[n] for n in compared} == pytest.approx(
            compared, rel=1e-5, abs=1e-5
        )
        differs |= abs(own["val_f1"] - finished.federated["val_f1"]) > 0.01
    assert differs


SOME = """

class Some(Base):
    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.gather(batch)
        self.log("val_auroc", self.val_auroc)
        self.log("r2", self.pair["r2"])
        self.log("ratio", float(len(y)) if len(y) > 2 else float("nan"))
        self.log("root", float("nan"))
"""


def some(experiment: Experiment) -> Experiment:
    """The same with a module whose metrics are not defined everywhere."""
    path = Path(experiment.model.class_.partition(":")[0])
    path.write_text(OWN + SOME)
    return experiment


@pytest.mark.parametrize("thresholds", [None, 300])
@pytest.mark.parametrize("engine", ["auto", "lightning"])
def test_a_curve_of_one_class_is_left_out_and_the_federated_one_is_whole(
    make: Any, recorder: Any, thresholds: int | None, engine: str
) -> None:
    tables = {
        "data": {
            "clients": 3,
            "partition": "shards",
            "shards-per-client": 1,
            "validation-fraction": 0.5,
        },
        "evaluate": {"clients": 3},
    }
    experiment = some(make("Some", {"thresholds": thresholds}, train={"engine": engine}, **tables))
    space = Workspace.load(experiment)
    run_in_process(experiment, [recorder], space)
    model = held_state(recorder.of(Checkpoint)[-1].arrays)
    x, y = examples(space, np.concatenate([space.data.validation_indices(p) for p in range(3)]))
    (finished,) = recorder.of(RoundFinished)
    expected = by_hand(x, y, outputs(model, x))["val_auroc"]
    assert finished.federated["val_auroc"] == pytest.approx(
        expected, abs=0.01 if thresholds else 1e-6
    )
    replied = [e.metrics for e in recorder.of(ClientReplied) if e.phase != "train"]
    assert len(replied) == 6
    assert all("val_auroc" not in metrics and "r2" in metrics for metrics in replied)
    said = [e.text for e in recorder.of(Noticed) if e.text.startswith("val_auroc")]
    assert said == [
        "val_auroc is not defined for client 0 (No positive samples in targets) and 2 more clients; "
        "left out there"
    ]


@pytest.mark.parametrize("engine", ["auto", "lightning"])
def test_numbers_that_a_client_cannot_have_count_nowhere(
    make: Any, recorder: Any, engine: str
) -> None:
    data = {"clients": 4, "partition": "exponential", "min-examples": 4, "validation-fraction": 0.1}
    experiment = some(make("Some", data=data, train={"engine": engine}))
    space = Workspace.load(experiment)
    sizes = [len(space.data.validation_indices(p)) for p in range(4)]
    assert sizes == [1, 2, 6, 16]
    run_in_process(experiment, [recorder], space)
    (finished,) = recorder.of(RoundFinished)
    model = held_state(recorder.of(Checkpoint)[-1].arrays)
    x, y = examples(space, np.concatenate([space.data.validation_indices(p) for p in range(4)]))
    expected = by_hand(x, y, outputs(model, x))["val_r2"]
    assert finished.federated["r2"] == pytest.approx(expected, rel=1e-5)
    assert finished.federated["ratio"] == pytest.approx((6 * 6 + 16 * 16) / 22)
    assert "root" not in finished.federated
    assert "root" not in finished.central
    own = {e.partition: e.metrics for e in recorder.of(ClientReplied) if e.phase == "final"}
    assert [sorted(own[p].keys() & {"r2", "ratio"}) for p in range(4)] == [
        [],
        ["r2"],
        ["r2", "ratio"],
        ["r2", "ratio"],
    ]
    said = [e.text for e in recorder.of(Noticed)]
    assert {
        "root is not defined on the test set (NaN); left out",
        "r2 is not defined for client 0 (Needs at least two samples to calculate r2 score); left out "
        "there",
        "ratio is not defined for client 0 (NaN) and 1 more client; left out there",
        "root is not defined for client 0 (NaN) and 3 more clients; left out there",
    } <= {*said}
    assert len(said) == len({*said})


CALLED = """

class Called(Base):
    def __init__(self):
        super().__init__()
        self.r2 = R2Score()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        value = self.r2(self.layer(x)[:, 1], x[:, 1])
        self.log("r2", self.r2)
        self.log("batch_r2", value)
"""


@pytest.mark.parametrize("engine", ["stacked", "lightning"])
@pytest.mark.parametrize("validate", [False, True])
def test_a_metric_that_is_called_for_one_example_is_left_out(
    make: Any, recorder: Any, engine: str, validate: bool
) -> None:
    data = {"clients": 4, "partition": "exponential", "min-examples": 4, "validation-fraction": 0.1}
    train = {"engine": "lightning" if validate else engine, "validate": validate}
    experiment = make("Called", data=data, train=train)
    Path(experiment.model.class_.partition(":")[0]).write_text(OWN + CALLED)
    space = Workspace.load(experiment)
    assert len(space.data.validation_indices(0)) == 1
    run_in_process(experiment, [recorder], space)
    (finished,) = recorder.of(RoundFinished)
    assert finished.failures == {}
    model = held_state(recorder.of(Checkpoint)[-1].arrays)
    x, y = examples(space, np.concatenate([space.data.validation_indices(p) for p in range(4)]))
    expected = by_hand(x, y, outputs(model, x))["val_r2"]
    assert finished.federated["r2"] == pytest.approx(expected, rel=1e-5)
    replied = [(e.phase, e.partition, e.metrics) for e in recorder.of(ClientReplied)]
    for phase, partition, metrics in replied:
        has = partition > 0 and (phase != "train" or validate)
        assert ("r2" in metrics, "batch_r2" in metrics) == (has, has)
    why = "NaN" if validate else "Needs at least two samples to calculate r2 score"
    reason = f"r2 is not defined for client 0 ({why}); "
    assert any(e.text.startswith(reason) for e in recorder.of(Noticed))


TRAINS = """

class Trains(Base):
    def __init__(self):
        super().__init__()
        self.val_f1.persistent(True)
        self.train_acc = MulticlassF1Score(3, average="micro")

    def training_step(self, batch, batch_idx):
        out = self.layer(batch[0])
        self.train_acc(out, batch[1])
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return functional.cross_entropy(out, batch[1])

    def validation_step(self, batch, batch_idx):
        self.val_f1.update(self.layer(batch[0]), batch[1])
        self.log("val_f1", self.val_f1)
"""


def test_states_are_no_part_of_the_model_and_a_training_metric_is_each_clients_own(
    make: Any, recorder: Any
) -> None:
    experiment = make("Trains")
    Path(experiment.model.class_.partition(":")[0]).write_text(OWN + TRAINS)
    space = Workspace.load(experiment)
    reason = r"training_step logs 'train_acc', a metric object \(own\.py:\d+\)"
    assert re.fullmatch(reason, str(space.engine.why_not))
    run_in_process(experiment, [recorder], space)
    assert {*recorder.of(Checkpoint)[-1].arrays} == {"layer.weight", "layer.bias"}
    (finished,) = recorder.of(RoundFinished)
    trained = [e.metrics for e in recorder.of(ClientReplied) if e.phase == "train"]
    assert len({metrics["accuracy"] for metrics in trained}) > 1
    weighted = sum(m["accuracy"] * m["num-examples"] for m in trained)
    assert finished.train["accuracy"] == pytest.approx(
        weighted / sum(m["num-examples"] for m in trained)
    )
    for metrics in trained:  # a share of the client's examples: no sum over clients
        right = metrics["accuracy"] * metrics["num-examples"]
        assert 0 < round(right) <= metrics["num-examples"]
        assert right == pytest.approx(round(right), abs=1e-3)
    assert 0 < finished.federated["val_f1"] <= 1
