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
MODELS = HERE.parent / "peers" / "shared" / "models.py"
_TEST = 1000  # examples of a generated test set


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


class DroppingCNN(SmallCNN):
    """The same with the benchmark's two dropouts."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 3, 32, 32]."""
        x = torch.relu(self.conv_1(x))
        x = functional.max_pool2d(torch.relu(self.conv_2(x)), 2)
        x = functional.dropout(x, 0.25, self.training).flatten(1)
        x = functional.dropout(torch.relu(self.layer_1(x)), 0.5, self.training)
        logits: Tensor = self.layer_2(x)
        return logits


class Block(nn.Module):
    """Two convolutions with GroupNorm of two groups beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            *(nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.GroupNorm(2, after)),
            *(nn.ReLU(), nn.Conv2d(after, after, 3, padding=1, bias=False)),
            nn.GroupNorm(2, after),
        )
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(2, after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features [batch, after, height / stride, width / stride]."""
        return torch.relu(self.inner(x) + self.shortcut(x))


class ResNet18(Supervised):
    """ResNet-18 for CIFAR10 with GroupNorm: Reddi et al., "Adaptive Federated Optimization" (2021)."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.05, optimizer="sgd")
        sizes = (64, 64), (64, 128), (128, 256), (256, 512)
        blocks = [
            block
            for before, after in sizes
            for block in (Block(before, after, after // before), Block(after, after, 1))
        ]
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.GroupNorm(2, 64), nn.ReLU(), *blocks),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 3, 32, 32]."""
        logits: Tensor = self.layers(x)
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


def markov_text(
    sequences: int = 60_000, length: int = 80, vocabulary: int = 80, seed: int = 0
) -> dict[str, Any]:
    """Sequences of a Markov chain over characters, and the next character at each place.

    Four characters may follow each; the first of them does so in six of ten cases.
    """
    rng = np.random.default_rng(seed)
    followers = rng.integers(0, vocabulary, (vocabulary, 4))
    text = np.empty((sequences + _TEST, length + 1), np.int64)
    text[:, 0] = rng.integers(0, vocabulary, len(text))
    for place in range(length):
        chosen = rng.choice(4, len(text), p=(0.6, 0.2, 0.1, 0.1))
        text[:, place + 1] = followers[text[:, place], chosen]
    return _divided(text[:, :-1], text[:, 1:])


def noisy_pictures(images: int = 60_000, seed: int = 0) -> dict[str, Any]:
    """Images in the shape of CIFAR10: a picture of its own for each class, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, images + _TEST)
    pictures = rng.integers(64, 192, (10, 3, 4, 4)).repeat(8, 2).repeat(8, 3).astype(np.uint8)
    noise = rng.integers(0, 64, (len(labels), 3, 32, 32), np.uint8)
    return _divided(pictures[labels] + noise, labels)


def _divided(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The last examples are the test set."""
    return {
        "x_train": x[:-_TEST],
        "y_train": y[:-_TEST],
        "x_test": x[-_TEST:],
        "y_test": y[-_TEST:],
    }


def any_model(what: str, model: str, **data: Any) -> dict[str, Any]:
    """W5 to W10: 10 of 100 clients with 600 examples, one of the models of peers/shared/models.py."""
    return {
        "what": f"10 of 100 clients, 600 examples, batch 32, SGD 0.05, {what}",
        "data": {"clients": 100, **data},
        "strategy": {"fraction-train": 0.1},
        "model": {"class": f"{MODELS}:{model}", "args": {"learning_rate": 0.05}},
        "evaluate": {"central-every": 5},
    }


def small_clients(workload: dict[str, Any]) -> dict[str, Any]:
    """The same data and model with ten times as many clients: 100 of 1,000, 60 examples, batch 10."""
    what = workload["what"].partition("batch 32, ")[2]
    return {
        **workload,
        "what": f"100 of 1,000 clients, 60 examples, batch 10, {what}",
        "data": workload["data"] | {"clients": 1000},
        "train": {"batch-size": 10},
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
    "W5": any_model("784-128-256-10 with two dropouts", "DropoutPerceptron"),
    "W6": any_model("conv16-BN-conv32-BN-dropout-fc", "NormalizedCNN"),
    "W7": any_model("GRU of 64 over the rows of an image", "RowGRU"),
    "W8": any_model("two encoder layers with dropout over the rows of an image", "RowTransformer"),
    "W9": any_model(
        "LSTM of 128 over 80 characters of generated text",
        "CharacterLSTM",
        dataset=f"{HERE}:markov_text",
        task="language",
    ),
    "W10": any_model(
        "ResNet-8 with BatchNorm, images of CIFAR10's shape",
        "ResNet8",
        dataset=f"{HERE}:noisy_pictures",
    ),
}
WORKLOADS |= {
    "W11": {
        **WORKLOADS["W4"],
        "what": f"{WORKLOADS['W4']['what']} with two dropouts",
        "model": {"class": f"{HERE}:DroppingCNN"},
    },
    "W12": {
        **WORKLOADS["W4"],
        "what": "10 of 1,000 users, 50 random images of CIFAR10's shape, batch 10, SGD 0.05, ResNet-18 with GroupNorm",
        "strategy": {"fraction-train": 0.01},
        "model": {"class": f"{HERE}:ResNet18"},
    },
}
ON_GPUS = ("W11", "W12")
"""Workloads that take minutes a round on a CPU, or are there for a GPU."""
WORKLOADS |= {
    f"{name}s": small_clients(WORKLOADS[name]) for name in ("W5", "W6", "W7", "W8", "W9", "W10")
}


def experiment(name: str, rounds: int, engine: str = "auto", device: str = "auto") -> Experiment:
    """The workload as an experiment without held-out parts."""
    spec = {key: dict(value) for key, value in WORKLOADS[name].items() if key != "what"}
    spec.setdefault("data", {})["validation-fraction"] = 0.0
    spec.setdefault("strategy", {})["rounds"] = rounds
    spec.setdefault("evaluate", {})["clients"] = 0
    spec.setdefault("train", {}).update(engine=engine, device=device)
    return Experiment.model_validate({"name": name.lower(), **spec})
