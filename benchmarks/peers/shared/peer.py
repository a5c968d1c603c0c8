"""What the peers' scripts share: the workload, the data, the model, and how a result is written.

A script is started as ``python <name>.py WORKLOAD.json RESULT.json``, in its own environment. The
names of the scripts are those of packages, so Python must not look for modules in their folder:
``peers.py`` sets ``PYTHONSAFEPATH``, and ``PYTHONPATH`` to this one. NumPy and PyTorch only, and Lightning
where it is.
"""

from __future__ import annotations

import functools
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

import models


@dataclass(frozen=True)
class Workload:
    model: str
    """``mlp``, or a class of models.py."""
    clients: int
    cohort: int
    """Clients a round."""
    batch: int
    """Examples of a batch."""
    optimizer: str
    """``adam`` or ``sgd``."""
    learning_rate: float
    evaluate_every: int
    """Rounds from one central evaluation to the next."""
    rounds: int
    seed: int
    data: str
    """The .npz with x_train, y_train, x_test and y_test."""

    @property
    def optimizer_class(self) -> Any:
        return {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[self.optimizer]

    def new_optimizer(self, model: nn.Module) -> Any:
        return self.optimizer_class(model.parameters(), lr=self.learning_rate)

    def evaluates(self, number: int) -> bool:
        """Whether round ``number``, from 1, ends with a central evaluation."""
        return number % self.evaluate_every == 0


@dataclass(frozen=True, eq=False)
class Data:
    x_train: Tensor  # float32 [60000, channels, height, width], 0 to 1, or int64 [60000, tokens]
    y_train: Tensor  # int64 [60000], or [60000, tokens]
    x_test: Tensor
    y_test: Tensor
    parts: tuple[Tensor, ...]
    """Rows of each client, of equal number: the IID partition."""

    def client(self, number: int) -> tuple[Tensor, Tensor]:
        return self.x_train[self.parts[number]], self.y_train[self.parts[number]]

    @property
    def classes(self) -> int:
        return int(self.y_train.max()) + 1


class Batches:
    """A client's batches, in a new order each time; as fast as PyTorch can index."""

    def __init__(self, x: Tensor, y: Tensor, size: int) -> None:
        self.x, self.y, self.size = x, y, size

    def __len__(self) -> int:
        return -(-len(self.y) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.y)).split(self.size):
            yield self.x[rows], self.y[rows]


@functools.cache
def load(workload: Workload) -> Data:
    """Read the data, once in a process."""
    with np.load(workload.data) as file:
        x_train, x_test = (
            inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs
            for inputs in (torch.from_numpy(file[name]) for name in ("x_train", "x_test"))
        )
        y_train, y_test = (torch.from_numpy(file[name]).long() for name in ("y_train", "y_test"))
    order = np.random.default_rng(workload.seed).permutation(len(y_train))
    parts = torch.from_numpy(order).split(len(order) // workload.clients)
    return Data(x_train, y_train, x_test, y_test, parts)


def new_model(workload: Workload) -> nn.Module:
    """The workload's model; ``mlp`` is 784-128-256-10 with ReLU."""
    if workload.model != "mlp":
        model: nn.Module = getattr(models, workload.model)()
        return model
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 128), nn.ReLU()),
        *(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def train(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], optimizer: Any) -> None:
    """One epoch, as PyTorch's tutorials write it."""
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Data) -> float:
    """Share of the test set's labels that the model gets right."""
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(data.x_test.split(1000), data.y_test.split(1000), strict=True)
    )
    return right / data.y_test.numel()


class Steps:
    """Counts the steps of all optimizers in this process."""

    def __init__(self) -> None:
        self.number = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.number += 1


class Rounds:
    """Seconds of each round: from where the one before ended, or ``begin``, to ``end``."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def begin(self) -> None:
        self.began = time.perf_counter()

    def end(self) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        self.began = now


def arguments() -> tuple[Workload, Callable[..., None]]:
    """The workload, seeded for, and what writes the result: rounds, steps, accuracy, versions."""
    workload_file, result_file = sys.argv[1:3]
    workload = Workload(**json.loads(Path(workload_file).read_text()))
    random.seed(workload.seed)
    np.random.seed(workload.seed)  # noqa: NPY002 - pfl and fluke draw from it
    torch.manual_seed(workload.seed)

    def write(rounds: Rounds, steps: int, accuracy: float, *packages: str) -> None:
        result = {
            "rounds": rounds.seconds,
            "steps": steps,
            "accuracy": accuracy,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", *packages)},
        }
        Path(result_file).write_text(json.dumps(result))

    return workload, write
