"""What people read when a model does not fit its data, or a client diverges: the true cause, once."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from flsimulation import run
from flsimulation.cli.view import PlainView
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ModelError, RoundError
from flsimulation.events import ClientReplied, Noticed, PhaseStarted, RoundFinished
from flsimulation.experiment import Experiment
from flsimulation.experiment.spec import Train
from flsimulation.training.diagnosis import why_diverged

MODELS = """
import warnings

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

class Base(pl.LightningModule):
    def __init__(self, learning_rate=0.05):
        super().__init__()
        self.learning_rate = learning_rate
        self.layer = nn.Linear(6, 3)
    def forward(self, x):
        return self.layer(x)
    def loss(self, out, y):
        return F.cross_entropy(out, y)
    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self(batch[0]), batch[1]))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

class Wide(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)

class Second(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(4, 3))

class Sized(Base):
    def forward(self, x):
        return self.layer(x.reshape(32, -1))
    validation_step = None

class Skips(Base):
    def training_step(self, batch, batch_idx):
        if len(batch[1]) < 4:
            return {}
        return super().training_step(batch, batch_idx)

class Retries(Base):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(3, 3)
    def training_step(self, batch, batch_idx):
        for layer in (self.other, self.layer):
            try:
                out = layer(batch[0])
            except RuntimeError:
                continue
        try:
            F.cross_entropy(out, batch[1].float())
        except RuntimeError:
            pass
        return F.cross_entropy(out, batch[1]) / self.trainer.num_training_batches

class Normed(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))

class Channels(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 2)
    def forward(self, x):
        return self.layer(x.view(-1, 1, 2, 3)).flatten(1)

class Flat(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 2)

class Tokens(Base):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(9, 1)
    def forward(self, x):
        return self.layer(self.emb(x).squeeze(-1))

class Vocabulary(Tokens):
    def forward(self, x):
        return super().forward(x.long().abs() + 8)

class Narrow(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

class FloatLabels(Base):
    def loss(self, out, y):
        return F.cross_entropy(out, y.float())

class Column(Base):
    def loss(self, out, y):
        return F.cross_entropy(out, y.unsqueeze(1))

class Single(Base):
    def __init__(self, learning_rate=0.05):
        super().__init__(learning_rate)
        self.layer = nn.Linear(6, 1)

class Pairs(Single):
    def loss(self, out, y):
        return F.binary_cross_entropy_with_logits(out, (y > 0).float())

class Pixels(Base):
    channels = 1
    def loss(self, out, y):
        out = out[:, :1, None, None].expand(-1, self.channels, 2, 3)
        return F.binary_cross_entropy_with_logits(out, (y > 0).float()[:, None, None].expand(-1, 2, 3))

class TwoChannels(Pixels):
    channels = 2

class Broadcast(Single):
    def loss(self, out, y):
        return F.mse_loss(out, y.float())

class Matched(Single):
    def loss(self, out, y):
        return F.mse_loss(out.squeeze(-1), y.float())

class PerExample(Base):
    def loss(self, out, y):
        return F.cross_entropy(out, y, reduction="none")

class Number(Base):
    def training_step(self, batch, batch_idx):
        return 0.5

class Unnamed(Base):
    def training_step(self, batch, batch_idx):
        return {"total": super().training_step(batch, batch_idx)}

class Mended(Wide):
    # its batch is not that of the data set
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return F.pad(batch[0], (0, 10)), batch[1]

class Hooked(Wide):
    def on_train_epoch_start(self):
        self.began = True

class Manual(Broadcast):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
    def training_step(self, batch, batch_idx):
        loss = self.loss(self(batch[0]), batch[1])
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

class Forgiving(Base):
    def forward(self, x):
        try:
            return self.layer(torch.cat([x, x], 1))
        except RuntimeError:
            return self.layer(x)

class Scripted(Base):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.layer = torch.jit.script(nn.Linear(6, 3))

class Doubled(Base):
    # trains where Lightning converts its inputs
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3).double()

class Exits(Base):
    def training_step(self, batch, batch_idx):
        raise SystemExit(3)

class Locked(Base):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")

class Masked(Base):
    def __init__(self):
        super().__init__()
        mask = torch.tensor([[0.0, -torch.inf, -torch.inf]] * 6)
        self.register_buffer("mask", mask)
    def forward(self, x):
        return self.layer(x) + torch.softmax(self.mask, 1)[:3].sum(0)

class Deep(Base):
    def __init__(self, learning_rate=0.05):
        super().__init__(learning_rate)
        self.first, self.root = nn.Linear(6, 6), Root()
    def forward(self, x):
        return self.layer(self.root(self.first(x)))

class Root(nn.Module):
    def forward(self, x):
        return (x - x.abs() - 1).sqrt()

class Logs(Base):
    def loss(self, out, y):
        return (out * 0).log().mean() * 0

class Enormous(Base):
    def training_step(self, batch, batch_idx):
        torch.empty(10**15)
        return super().training_step(batch, batch_idx)

class Kept(Base):
    # passes a number on from step to step, which only a fit of its own shows
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(1))
    def training_step(self, batch, batch_idx):
        self.scale *= float("inf")
        return super().training_step(batch, batch_idx)

def parts(y_scale=1, column=1.0, hole=None):
    rng = np.random.default_rng(3)
    y = np.arange(240) % 3
    x = (3 * np.eye(6)[y] + rng.normal(0, 0.5, (240, 6))).astype("float32")
    x[:, 4] *= column
    if hole is not None:
        x[7, 2] = hole
    y = y if y_scale == 1 else (y * y_scale + 0.5).astype("float32")
    return dict(x_train=x[:180], y_train=y[:180], x_test=x[180:], y_test=y[180:])

def prices():
    return parts(y_scale=256000.0)

def wide_column():
    return parts(column=3e5)
"""


@pytest.fixture
def own(own_modules: Any, make_experiment: Any) -> Callable[..., Experiment]:
    """An experiment with one of the models above."""
    path = own_modules(MODELS, "failing.py")

    def make(name: str, data: str = "", **tables: Any) -> Experiment:
        model = {"class": f"{path}:{name}", "args": tables.pop("args", {})}
        if data:
            tables["data"] = {"dataset": f"{path}:{data}", **tables.get("data", {})}
        return Experiment.model_validate(make_experiment(model=model, **tables))

    return make


# --- before the first round -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "Wide",
            "batches have inputs of shape [batch, 6] float32, but the first layer `layer` (Linear) "
            "takes in_features = 16; set its in_features to 6, or change the data",
        ),
        (
            "Second",
            "batches have inputs of shape [batch, 6] float32, but layer `layer.2` (Linear) takes "
            "in_features = 4 and gets an input of shape [batch, 5] float32; set its in_features to 5",
        ),
        (
            "Channels",
            "the first layer `layer` (Conv2d) takes in_channels = 3 and gets an input of ",
        ),
        ("Flat", "(Conv2d) takes [batch, channels, size, size]; change the inputs' shape"),
        ("Tokens", "the first layer `emb` (Embedding) takes whole numbers (int64); use whole"),
        ("Vocabulary", "(Embedding) takes numbers from 0 to 8, not 8 to "),
        (
            "Narrow",
            "labels go from 0 to 2, but the model's last layer `layer` has 2 outputs; set it to 3",
        ),
        ("FloatLabels", "cross_entropy gets labels of type float32, but takes int64; convert them"),
        ("Column", "cross_entropy gets labels of shape [batch, 1] int64 for an output of shape"),
        (
            "Pairs",
            "binary_cross_entropy_with_logits gets an output of shape [batch, 1] float32 and labels "
            "of shape [batch] float32; make the shapes equal, for example with output.squeeze(-1)",
        ),
        (
            "Pixels",
            "gets an output of shape [batch, 1, 2, 3] float32 and labels of shape [batch, 2, 3] "
            "float32; make the shapes equal, for example with output.squeeze(1)",
        ),
        ("TwoChannels", "make the shapes equal, for example with one output channel instead of 2"),
        ("PerExample", "training_step returns a loss of shape [batch] float32; return one number"),
        ("Number", "training_step returns a float; return the loss as a tensor"),
        ("Unnamed", "training_step returns a dict without 'loss'; add the loss under this key"),
    ],
)
def test_a_model_that_does_not_fit_its_data_is_refused_before_a_client_trains(
    own: Any, name: str, text: str
) -> None:
    with pytest.raises(ModelError) as caught:
        Workspace.load(own(name))
    line = str(caught.value)
    assert text in line
    assert "\n" not in line
    assert "RuntimeError" not in line


@pytest.mark.parametrize("name", ["Base", "Mended", "Manual", "Forgiving", "Matched", "Masked"])
@pytest.mark.seconds
def test_no_model_that_trains_is_refused(own: Any, tmp_path: Path, name: str) -> None:
    result = run(own(name, strategy={"rounds": 1}), tmp_path / "run")
    assert result.state == "completed"
    assert result.loss is not None
    assert math.isfinite(result.loss)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("Doubled", "64-true"), ("Exits", "32-true"), ("Locked", "32-true"), ("Scripted", "32-true")],
)
def test_what_a_step_alone_cannot_tell_is_left_to_the_clients(
    own: Any, name: str, precision: str
) -> None:
    experiment = own(name, train={"precision": precision, "engine": "lightning"})
    assert Workspace.load(experiment).notices == ()


@pytest.mark.parametrize("name", ["Sized", "Skips", "Retries"])
def test_a_failure_of_two_examples_alone_refuses_no_model(own: Any, name: str) -> None:
    assert Workspace.load(own(name, train={"engine": "lightning"})).notices == ()


def test_a_last_batch_of_one_example_is_named_with_the_size_that_suits_all_clients(
    own: Any, tmp_path: Path
) -> None:
    count = Workspace.load(own("Base")).data.train_size(0)
    experiment = own("Normed", train={"batch-size": count - 1}, strategy={"rounds": 1})
    with pytest.raises(RoundError, match="batch normalisation needs two examples") as caught:
        run(experiment, tmp_path / "run")
    assert (
        f"the last of client 0 has one ({count} examples, train.batch-size {count - 1}); "
        f"set train.batch-size = {count}"
    ) in str(caught.value)


def test_looking_at_the_steps_leaves_the_random_streams_and_the_model_alone(own: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    space = Workspace.load(own("Base"))
    assert torch.equal(torch.rand(1), expected)
    assert all(parameter.grad is None for parameter in space.module.parameters())


def test_a_loss_that_pairs_every_output_with_every_label_is_one_line(own: Any) -> None:
    (text,) = Workspace.load(own("Broadcast")).notices
    assert text == (
        "mse_loss compares each output of shape [batch, 1] float32 with each label of shape [batch] "
        "float32, which trains towards the labels' mean; use output.squeeze(-1)"
    )
    assert Workspace.load(own("Matched")).notices == ()


@pytest.mark.seconds
def test_the_line_is_shown_once_and_without_pytorchs_warnings(
    own: Any, tmp_path: Path, recorder: Any, recwarn: pytest.WarningsRecorder
) -> None:
    run(own("Broadcast"), tmp_path / "run", [recorder])
    assert [e.text for e in recorder.of(Noticed) if "mse_loss" in e.text] == [
        Workspace.load(own("Broadcast")).notices[0]
    ]


@pytest.mark.seconds
def test_a_model_with_hooks_is_not_judged_before_but_its_failure_is_explained(
    own: Any, tmp_path: Path
) -> None:
    with pytest.raises(RoundError) as caught:
        run(own("Hooked"), tmp_path / "run")
    assert str(caught.value) == (
        "round 1: 0 of 4 clients succeeded, 1 needed; all 4 clients: batches have inputs of shape "
        "[batch, 6] float32, but the first layer `layer` (Linear) takes in_features = 16; set its "
        "in_features to 6, or change the data"
    )
    lines = (tmp_path / "run" / "clients.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all("in_features = 16" in json.loads(line)["error"] for line in lines)


# --- divergence -----------------------------------------------------------------------------------


def failed(experiment: Experiment, out: Path) -> str:
    """The error of a run in which every client fails."""
    with pytest.raises(RoundError) as caught:
        run(experiment, out)
    text = str(caught.value)
    assert text.count("training loss") + text.count("its weights") == 1
    return text.split("needed; ")[1]


@pytest.mark.seconds
@pytest.mark.parametrize("engine", ["auto", "lightning"])
def test_a_layer_that_went_wrong_is_named(own: Any, tmp_path: Path, engine: str) -> None:
    text = failed(own("Deep", train={"engine": engine}), tmp_path / "run")
    assert text.startswith(
        "all 4 clients: its training loss is nan; layer `root` is the first whose output is not "
        "finite (first step); inputs and labels are finite (inputs up to "
    )
    assert text.endswith(
        "weights too; look for a division by 0, or log or sqrt of 0 (found on client 0)"
    )


@pytest.mark.seconds
def test_a_loss_that_is_not_finite_is_told_apart_from_layers(own: Any, tmp_path: Path) -> None:
    assert "the loss is not finite, while every layer's output is" in failed(
        own("Logs"), tmp_path / "run"
    )


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("name", "data", "rate", "part"),
    [
        ("Matched", "prices", 1.0, "labels reach 512,000: scale them, or lower "),
        ("Matched", "wide_column", 0.5, " at index 4: scale them, or lower "),
        ("Matched", "parts", 1e3, "inputs and labels are finite (inputs up to 4"),
    ],
)
def test_the_advice_fits_the_cause(
    own: Any, tmp_path: Path, name: str, data: str, rate: float, part: str
) -> None:
    experiment = own(name, data, args={"learning_rate": rate}, train={"epochs": 20})
    text = failed(experiment, tmp_path / "run")
    assert part in text
    assert f"lower model.args.learning_rate ({rate:g})" in text


@pytest.mark.seconds
@pytest.mark.parametrize(("strategy", "engine"), [("fedavg", "auto"), ("krum", "lightning")])
def test_infinities_that_were_there_before_are_no_divergence(
    own: Any, tmp_path: Path, recorder: Any, strategy: str, engine: str
) -> None:
    experiment = own("Masked", strategy={"name": strategy}, train={"engine": engine})
    assert run(experiment, tmp_path / "run", [recorder]).state == "completed"
    assert [e.failures for e in recorder.of(RoundFinished)] == [{}, {}]


@pytest.mark.seconds
def test_a_buffer_that_training_makes_infinite_is_named(own: Any, tmp_path: Path) -> None:
    text = failed(own("Kept"), tmp_path / "run")
    assert text.startswith("all 4 clients: its weights scale are not finite; ")


@pytest.mark.seconds
def test_a_tables_column_is_named_where_its_numbers_are_the_cause(
    make_experiment: Any, tmp_path: Path
) -> None:
    rows = [f"{i % 5},{2e6 + i * 1e3},{i % 2}" for i in range(80)]
    (tmp_path / "people.csv").write_text("\n".join(["age,income,label", *rows]))
    experiment = make_experiment(
        data={"dataset": f"file:{tmp_path / 'people.csv'}"},
        model={"class": "logistic", "args": {"learning_rate": 1e35}},
    )
    text = failed(experiment, tmp_path / "run")
    assert "inputs reach 2.07" in text
    assert "in column 'income': scale them, or lower model.args.learning_rate (1e+35)" in text


@pytest.mark.seconds
def test_too_little_memory_is_one_line_with_the_key(own: Any, tmp_path: Path) -> None:
    with pytest.raises(RoundError) as caught:
        run(own("Enormous"), tmp_path / "run")
    assert str(caught.value).endswith(
        "all 4 clients: there is not enough memory for training_step; lower train.batch-size (32)"
    )


def test_steps_that_stay_finite_in_float32_point_to_the_precision(own: Any) -> None:
    space = Workspace.load(own("Base", train={"engine": "lightning"}))
    for precision, part in (("16-mixed", "train.precision"), ("32-true", "is not known; lower")):
        spec = Train(precision=precision)
        job = functools.partial(space.train_job, 0, 1)
        assert part in why_diverged(space.module, space.initial_state(), job, spec)


# --- on the console -------------------------------------------------------------------------------


def test_a_failure_is_shown_once_and_the_others_are_named(
    make_experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    view = PlainView(Console(width=200), make_experiment())
    for round in (1, 2):
        view(PhaseStarted(round, "train", (0, 1, 2)))
        for client in range(3):
            text = f"ValueError: {client} is too small"
            view(ClientReplied(round, "train", client, {}, "error", text))
        view(ClientReplied(round, "train", 3, {}, "lost", "it went away"))
        view(PhaseStarted(round, "evaluate", ()))
    assert capsys.readouterr().out.splitlines() == [
        "  round 1/2, training: client 0 failed (error): ValueError: 0 is too small",
        "  round 1/2, training: client 3 failed (lost): it went away",
        "  round 1/2, training: client 1, client 2 failed as shown above",
        "  round 2/2, training: client 3 failed (lost): it went away",
        "  round 2/2, training: client 0, client 1, client 2 failed as shown above",
    ]
