"""Clients that train one by one in several processes, where their model cannot be stacked."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from flsimulation import run
from flsimulation.client.workspace import Workspace
from flsimulation.clock import SystemClock
from flsimulation.errors import ClientError, ModelError
from flsimulation.events import ClientReplied, RunStarted
from flsimulation.experiment import Experiment
from flsimulation.experiment.spec import Train
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.training import Batches, Job, Terms, engine_for, processes_for

pytestmark = [pytest.mark.seconds, pytest.mark.usefixtures("cpu")]

Make = Callable[..., Experiment]

NET = """
import os, signal, time
import torch, pytorch_lightning as pl
from torch import nn
from torch.nn import functional

class Net(pl.LightningModule):
    def __init__(self, fail=""):
        super().__init__()
        self.fail = fail
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.log("process", float(os.getpid()))
        if self.fail == "raise" and len(x) == 7:
            raise ValueError("a strange batch")
        if self.fail == "killed" and len(x) > 2:  # two are only for practice
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fail == "slow" and len(x) > 2:
            time.sleep(600)
        return functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", functional.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)
"""


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def make(make_experiment: Make, own_modules: Callable[[str], Path]) -> Make:
    def build(fail: str = "", **tables: Any) -> Experiment:
        model = {"class": f"{own_modules(NET)}:Net", "args": {"fail": fail}}
        train = {"engine": "direct", **tables.pop("train", {})}
        return make_experiment(model=model, train=train, **tables)

    return build


def test_processes_give_what_one_process_gives(
    make: Make, tmp_path: Path, recorder: Any, threads: Any
) -> None:
    experiment = make(strategy={"rounds": 3, "name": "fedprox", "proximal-mu": 0.1})
    threads(1)
    alone = run(experiment, tmp_path / "alone")
    threads(2)
    together = run(experiment, tmp_path / "together", [recorder])
    assert together.weights_sha256 == alone.weights_sha256
    (started,) = recorder.of(RunStarted)
    assert (started.engine, started.not_stacked) == ("direct", None)
    replies = [e for e in recorder.of(ClientReplied) if e.phase == "train"]
    assert len({e.metrics["process"] for e in replies}) == 2  # none of them this one
    assert [e.partition for e in replies] == [0, 1, 2, 3] * 3
    manifest = json.loads((tmp_path / "together" / "manifest.json").read_text())
    assert manifest["engine"] == "direct"
    assert multiprocessing.active_children() == []


def test_a_client_that_raises_is_named_and_the_others_go_on(
    make: Make, tmp_path: Path, recorder: Any, threads: Any
) -> None:
    threads(2)
    experiment = make(
        "raise",
        data={"partition": "linear", "min-examples": 2, "validation-fraction": 0.0},
        train={"batch-size": 17},  # 24, 48, 72 and 96 examples: the first client's second batch
        evaluate={"clients": 0},
        strategy={"rounds": 2},
    )
    run(experiment, tmp_path / "run", [recorder])
    failed = [e for e in recorder.of(ClientReplied) if e.reason is not None]
    assert {(e.partition, e.reason) for e in failed} == {(0, "error")}
    assert all("ValueError: a strange batch (own.py:" in str(e.error) for e in failed)


def test_a_process_that_is_killed_is_lost_and_there_are_new_ones(make: Make, threads: Any) -> None:
    from flsimulation.errors import RoundError

    threads(2)
    with pytest.raises(
        RoundError, match="clients?( 0)?: its process was killed, most likely out of"
    ):
        run(make("killed", strategy={"rounds": 1}))
    assert multiprocessing.active_children() == []


class Deadly(pl.LightningModule):
    """Its process is killed for batches of a size; two examples are only for practice."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layer, self.sizes = torch.nn.Linear(1, 1), sizes

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if len(batch[0]) in self.sizes:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(batch[0]).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", ["direct", "lightning"])
def test_only_the_client_whose_process_is_killed_is_lost_however_many_examples(kind: str) -> None:
    x, y = torch.ones(40_000, 1), torch.zeros(40_000)
    engine = engine_for(Deadly(5_000), Train(engine=kind), x, y, 6, 2)
    sizes = (5_000, 20_000, 12_000, 39_000, 5_000, 9)  # indices of up to 320 kB
    jobs = [
        Job(place, Batches(x, y, np.arange(size), 7_000), functools.partial(int, 1), round=1)
        for place, size in enumerate(sizes)
    ]
    for _ in range(2):
        fitted = list(engine.fit(STATE, jobs, Terms()))
        reasons = [getattr(one.results[place], "reason", "") for place, one in enumerate(fitted)]
        assert reasons == ["lost", "", "lost", "", "lost", ""]
    engine.close()
    assert multiprocessing.active_children() == []


STATE = {"layer.weight": torch.ones(1, 1), "layer.bias": torch.zeros(1)}


class Patient(SystemClock):
    """A clock by which the exchange never gives up before the processes do."""

    def monotonic(self) -> float:
        return 0.0


def test_a_deadline_ends_clients_that_hang_and_their_processes(
    make: Make, threads: Any, recorder: Any
) -> None:
    from flsimulation.errors import RoundError

    threads(2)
    spec = make("slow", strategy={"rounds": 1}, round={"deadline": 1.0})
    with pytest.raises(
        RoundError, match="0 of 4 clients succeeded, 1 needed; all 4 clients: .*deadline"
    ):
        run_in_process(spec, [recorder], Workspace.load(spec, clock=Patient()))
    assert {e.reason for e in recorder.of(ClientReplied)} == {"deadline"}
    assert multiprocessing.active_children() == []


def test_no_processes_where_they_are_of_no_use(make: Make, threads: Any) -> None:
    train = make().train
    threads(1)
    assert processes_for(train, 4) == 1
    threads(4)
    assert processes_for(train, 1) == 1
    assert processes_for(train, 3) == 3
    assert processes_for(train, 100) == 4


def test_an_engine_that_the_model_does_not_allow_is_refused(make: Make, tmp_path: Path) -> None:
    text = (
        "train.engine is 'stacked', but train.validate evaluates between the epochs; "
        "use 'auto' or 'lightning'"
    )
    with pytest.raises(ModelError, match=text):
        run(make(train={"engine": "stacked", "validate": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_clients_failure_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ClientError("diverged", "its loss is nan")))
    assert (type(error), error.reason, str(error)) == (ClientError, "diverged", "its loss is nan")
