"""What no client trains stays bit for bit, under every strategy and engine; what one changes does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from safetensors.numpy import load_file

from flsimulation import run
from flsimulation.experiment.strategy import STRATEGIES
from flsimulation.messages.weights import mean_of
from flsimulation.training.stacked.rows import mean_of_rows

MODULE = """
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.body.requires_grad_(False)
        self.unused = nn.Parameter(torch.full((7,), 0.19))
        self.register_buffer("scale", torch.full((5,), 0.1))

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters()], lr=0.1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self.head(torch.tanh(self.body(x)) * self.scale), y)
"""
THAWED = """

class Thawing(Net):
    def on_train_start(self):
        self.body.requires_grad_(True)
"""
OWN: dict[str, dict[str, Any]] = {
    "fedprox": {"proximal-mu": 0.1},
    "qfedavg": {"client-learning-rate": 0.5},
    "fedavgm": {"server-momentum": 0.3},
    "multikrum": {"num-malicious-nodes": 1, "num-nodes-to-select": 3},
}
KEPT = ("body.weight", "body.bias", "unused", "scale")

Trained = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


@pytest.fixture
def trained(make_experiment: Any, own_modules: Any, tmp_path: Path) -> Callable[..., Trained]:
    """The model before and after three rounds."""

    def call(name: str = "fedavg", cls: str = "Net", engine: str = "lightning") -> Trained:
        file = own_modules(MODULE + THAWED)
        weights: list[dict[str, np.ndarray]] = []
        for rounds in (1, 3):
            spec = make_experiment(
                data={"clients": 5, "examples-per-client": 0},
                model={"class": f"{file}:{cls}", "args": {}},
                train={"batch-size": 16, "engine": engine},
                strategy={"name": name, "rounds": rounds, **OWN.get(name, {})},
                evaluate={"central-every": 0},
            )
            out = tmp_path / f"run-{rounds}"
            run(spec, out)
            weights.append(load_file(out / "model.safetensors"))
        return weights[0], weights[1]

    return call


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("name", "engine"),
    [*((name, "lightning") for name in STRATEGIES), ("fedavg", "stacked"), ("fedadam", "stacked")],
)
def test_what_no_client_trains_stays_bit_for_bit(
    trained: Callable[..., Trained], name: str, engine: str
) -> None:
    one, three = trained(name, engine=engine)
    for kept in KEPT:
        assert one[kept].tobytes() == three[kept].tobytes(), kept
    assert three["unused"].tobytes() == np.full(7, 0.19, np.float32).tobytes()
    assert three["scale"].tobytes() == np.full(5, 0.1, np.float32).tobytes()
    assert not np.array_equal(one["head.weight"], three["head.weight"])


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
def test_a_layer_that_clients_thaw_is_aggregated(
    trained: Callable[..., Trained], name: str
) -> None:
    one, three = trained(name, cls="Thawing")
    assert not np.array_equal(one["body.weight"], three["body.weight"])


def model(values: np.ndarray) -> ArrayRecord:
    return ArrayRecord({"w": Array(values)})


def test_the_mean_of_equal_arrays_is_that_array() -> None:
    odd = np.float32([0.19, 0.1, -0.0, 1e-30, np.nan])
    weights = [7, 11, 13]
    mean = mean_of([model(odd)] * 3, weights)["w"].numpy()
    assert mean.tobytes() == odd.tobytes()
    other = mean_of([model(odd), model(odd + np.float32(1)), model(odd)], weights)["w"].numpy()
    assert other[0] == pytest.approx(0.19 + 11 / 31)


def test_the_mean_of_one_is_that_one_and_no_copy() -> None:
    only = model(np.ones(3, np.float32))
    assert mean_of([only], [7])["w"] is only["w"]
    rows = torch.rand(1, 5)
    assert mean_of_rows(rows, torch.tensor([1.0])).data_ptr() == rows.data_ptr()
