"""Labels that a model has no output for: refused on the CPU, before a GPU could stop at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flsimulation.client.workspace import Workspace
from flsimulation.errors import InputError
from flsimulation.experiment import Experiment

pytestmark = pytest.mark.seconds

OWN = """
import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
LABELS = {labels}

def data():
    y = np.array(LABELS)
    return {"x_train": X, "y_train": y, "x_test": X[:30], "y_test": y[:30]}

def only_in_the_test_set():
    y = np.array(LABELS)
    return {"x_train": X, "y_train": np.arange(60) % 3, "x_test": X[:30], "y_test": y[30:]}

def tokens(wrong):
    x = {name: np.arange(60) % 9 for name in "ab"}
    x[wrong][50] = 9
    y = np.array(LABELS)
    return {"x_train": x, "y_train": y, "x_test": {n: v[:30] for n, v in x.items()}, "y_test": y[:30]}

def tokens_a():
    return tokens("a")

def tokens_b():
    return tokens("b")

class Base(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
    def loss(self, batch):
        return F.cross_entropy(self.layer(batch[0]), batch[1])
    def training_step(self, batch, batch_idx):
        return self.loss(batch)
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Named(Base):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Embedding(9, 6), nn.Embedding(9, 6)
    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self.layer(self.a(x["a"]) + self.b(x["b"])), y)

class Functional(Base):
    def loss(self, batch):
        return F.nll_loss(self.layer(batch[0]).log_softmax(1), batch[1])

class Gathering(Base):
    def loss(self, batch):
        return -self.layer(batch[0]).log_softmax(1).gather(1, batch[1][:, None]).mean()

class Choosing(Base):
    def loss(self, batch):
        return -self.layer(batch[0]).log_softmax(1)[range(len(batch[1])), batch[1]].mean()

class OneHot(Base):
    def loss(self, batch):
        return F.mse_loss(self.layer(batch[0]), F.one_hot(batch[1], 3).float())

class Weighing(Base):
    def __init__(self):
        super().__init__()
        self.weights = nn.Embedding(3, 1)
    def loss(self, batch):
        return (self.layer(batch[0]) ** 2 * self.weights(batch[1])).mean()
"""
LABELS = [i % 3 for i in range(60)]
RANGE = "labels go from 0 to 3, but the model's last layer `layer` has 3 outputs; set it to 4"


def high(at: int = 40) -> list[int]:
    return [3 if place == at else label for place, label in enumerate(LABELS)]


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients would train on a GPU; none is chosen to train on."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an engine was chosen")

    monkeypatch.setattr("flsimulation.client.workspace.engine_for", never)
    monkeypatch.setattr("flsimulation.client.causes.takes_gpu", lambda _: True)


Make = Callable[..., Experiment]


@pytest.fixture
def own(own_modules: Any, make_experiment: Any, tmp_path: Path) -> Make:
    """An experiment with labels from a source, and one of the models above."""

    def make(labels: Sequence[int], model: str = "Base", source: str = "data", **keys: Any) -> Any:
        path = own_modules(OWN.replace("{labels}", repr(list(labels))), "labelled.py")
        x, y = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), np.array(labels)
        file = tmp_path / f"labels.{source}"
        if source == "npz":
            np.savez(file, x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
        elif source == "csv":
            rows = [",".join(map(str, [*own, label])) for own, label in zip(x, y, strict=True)]
            file.write_text("\n".join(["a,b,c,d,e,f,label", *rows]))
        dataset = f"file:{file}" if source in ("npz", "csv") else f"{path}:{source}"
        return make_experiment(
            data={"dataset": dataset, "clients": 4, "task": "classification"},
            model={"class": f"{path}:{model}", "args": {}},
            **keys,
        )

    return make


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("source", ["data", "only_in_the_test_set", "npz", "csv"])
def test_a_label_above_the_outputs_is_refused_from_every_source(own: Make, source: str) -> None:
    with pytest.raises(InputError, match=RANGE):
        Workspace.load(own(high(), source=source))


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_a_label_above_the_outputs_is_refused_in_every_precision(own: Make, precision: str) -> None:
    with pytest.raises(InputError, match=RANGE):
        Workspace.load(own(high(), train={"precision": precision}))


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("Functional", RANGE),
        (
            "Gathering",
            r"training_step fails for a label or a token \(RuntimeError: index 3 is out of",
        ),
        ("Choosing", r"training_step fails for a label or a token \(IndexError: index 3 is out of"),
        (
            "OneHot",
            r"training_step fails for a label or a token \(RuntimeError: Class values must be",
        ),
        ("Weighing", r"`weights` \(Embedding\) takes numbers from 0 to 2, not [0-2] to 3"),
    ],
)
def test_whatever_takes_a_label_as_an_index_is_refused(own: Make, model: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Workspace.load(own(high(), model))


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_token_of_any_of_several_inputs_is_refused(own: Make, name: str) -> None:
    with pytest.raises(InputError, match=rf"`{name}` \(Embedding\) takes numbers from 0 to 8, not"):
        Workspace.load(own(LABELS, "Named", source=f"tokens_{name}"))


def test_labels_that_are_there_for_every_output_are_no_fault(own: Make) -> None:
    for model in ("Base", "Functional", "Gathering", "Choosing", "OneHot", "Weighing"):
        assert Workspace.load(own(LABELS, model)).notices == ()


def test_on_the_cpu_an_index_is_its_clients_own_error_as_before(own: Make) -> None:
    assert Workspace.load(own(high(), "Gathering", train={"device": "cpu"})).notices == ()
