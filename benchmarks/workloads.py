"""The workloads of the benchmarks: their experiments, and what they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.experiment import Experiment
from flsimulation.models.supervised import Supervised

HERE = Path(__file__).resolve()


class SmallCNN(Supervised):
    """conv32-conv64-pool-fc128, the network of pfl-research's CIFAR10 benchmark."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.1, optimizer="sgd")
        self.conv_1 = nn.Conv2d(3, 32, kernel_size=3)
        self.conv_2 = nn.Conv2d(32, 64, kernel_size=3)
        self.layer_1 = nn.Linear(64 * 14 * 14, 128)
        self.layer_2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 3, 32, 32]."""
        x = torch.relu(self.conv_1(x))
        x = functional.max_pool2d(torch.relu(self.conv_2(x)), 2)
        logits: Tensor = self.layer_2(torch.relu(self.layer_1(x.flatten(1))))
        return logits


def random_cifar(users: int = 1000, images: int = 50, seed: int = 0) -> dict[str, Any]:
    """Random images and labels in the shape of CIFAR10."""
    rng = np.random.default_rng(seed)
    sizes = {"train": users * images, "test": 1000}
    return {
        f"{kind}_{part}": rng.random((size, 3, 32, 32), np.float32)
        if kind == "x"
        else rng.integers(0, 10, size)
        for part, size in sizes.items()
        for kind in ("x", "y")
    }


WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {
        "what": "10 of 100 clients, 600 images, batch 32, Adam, 784-128-256-10",
        "data": {"clients": 100},
        "strategy": {"fraction-train": 0.1},
    },
    "W2": {
        "what": "100 of 1,000 clients, 60 images, batch 10, SGD 0.1, 784-128-256-10",
        "data": {"clients": 1000},
        "strategy": {"fraction-train": 0.1},
        "train": {"batch-size": 10},
        "model": {"args": {"optimizer": "sgd", "learning_rate": 0.1}},
        "evaluate": {"central-every": 5},
    },
    "W3": {
        "what": "10 of 100 clients, 600 images, batch 10, SGD 0.1, McMahan's CNN",
        "data": {"clients": 100},
        "strategy": {"fraction-train": 0.1},
        "train": {"batch-size": 10},
        "model": {"class": "cnn"},
        "evaluate": {"central-every": 5},
    },
    "W4": {
        "what": "50 of 1,000 users, 50 random images of CIFAR10's shape, batch 10, SGD 0.1, conv32-conv64-pool-fc128",
        "data": {"clients": 1000, "dataset": f"{HERE}:random_cifar"},
        "strategy": {"fraction-train": 0.05},
        "train": {"batch-size": 10},
        "model": {"class": f"{HERE}:SmallCNN"},
        "evaluate": {"central-every": 5},
    },
}


def experiment(name: str, rounds: int, engine: str = "auto", device: str = "auto") -> Experiment:
    """The workload as an experiment without held-out parts."""
    spec = {key: dict(value) for key, value in WORKLOADS[name].items() if key != "what"}
    spec.setdefault("data", {})["validation-fraction"] = 0.0
    spec.setdefault("strategy", {})["rounds"] = rounds
    spec.setdefault("evaluate", {})["clients"] = 0
    spec.setdefault("train", {}).update(engine=engine, device=device)
    return Experiment.model_validate({"name": name.lower(), **spec})
