"""FCUBE and the two models of FLBenchmark, which compares strategies of Flower.

Sources: Nechba, El Afia, Abdulrazak, FLBenchmark (github.com/NechbaMohammed/FLBenchmark); for FCUBE
and the models Li, Diao, Chen, He, "Federated Learning on Non-IID Data Silos", ICDE 2022, section IV.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.models.supervised import Supervised

_PARTIES, _POINTS = 4, 1000


def fcube(seed: int = 0) -> dict[str, Any]:
    """Points of a cube; the label is the side of the first axis that they are on.

    The cube's eight octants belong to four parties, each two that face each other.

    Returns
    -------
    dict
        Inputs float32 [4,000 and 1,000, 3], labels 0 and 1, and each training point's party.
    """
    rng = np.random.default_rng(seed)
    x = rng.random((_PARTIES, _POINTS, 3))
    x[2:, :, 1] *= -1
    x[1::2, :, 2] *= -1
    x[:, 1::2] *= -1  # into the octant that faces it
    train, test = x.reshape(-1, 3), 2 * rng.random((_POINTS, 3)) - 1
    return {
        "x_train": train.astype(np.float32),
        "y_train": (train[:, 0] < 0).astype(np.int64),
        "x_test": test.astype(np.float32),
        "y_test": (test[:, 0] < 0).astype(np.int64),
        "owners": np.repeat(np.arange(_PARTIES), _POINTS),
    }


class _Decaying(Supervised):
    """Trained with SGD, momentum 0.9 and weight decay 1e-5."""

    def __init__(self, learning_rate: float = 0.01) -> None:
        super().__init__(learning_rate, "sgd", momentum=0.9)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with its decay."""
        return torch.optim.SGD(
            self.parameters(), lr=self.learning_rate, momentum=self.momentum, weight_decay=1e-5
        )


class Perceptron(_Decaying):
    """3-32-16-8-2 with ReLU, for FCUBE."""

    def __init__(self, learning_rate: float = 0.01) -> None:
        super().__init__(learning_rate)
        widths = (3, 32, 16, 8)
        hidden = [
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (nn.Linear(before, after), nn.ReLU())
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 2] of points [batch, 3]."""
        logits: Tensor = self.layers(x)
        return logits


class LeNet(_Decaying):
    """Convolutions of 6 and 16 channels, 5x5, and layers of 120 and 84 units, for MNIST."""

    def __init__(self, learning_rate: float = 0.01) -> None:
        super().__init__(learning_rate)
        self.conv_1, self.conv_2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.layer_1, self.layer_2 = nn.Linear(256, 120), nn.Linear(120, 84)
        self.layer_3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 1, 28, 28], values 0 to 1."""
        x = (x - 0.1307) / 0.3081
        x = functional.max_pool2d(torch.relu(self.conv_1(x)), 2)
        x = functional.max_pool2d(torch.relu(self.conv_2(x)), 2)
        x = torch.relu(self.layer_1(x.flatten(1)))
        logits: Tensor = self.layer_3(torch.relu(self.layer_2(x)))
        return logits
