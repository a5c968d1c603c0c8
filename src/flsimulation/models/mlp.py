"""Perceptrons with two hidden layers: the default model and the 2NN of McMahan et al. (2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flsimulation.models.supervised import Optimizer, Supervised, flat


class MLP(Supervised):
    """Perceptron ``inputs``-128-256-``classes`` with ReLU, trained with Adam.

    Parameters
    ----------
    inputs, classes : int
        Width of the first and the last layer; by default those of MNIST.
    hidden : (int, int)
        Widths of the two hidden layers.
    learning_rate, optimizer, momentum, **options
        See `Supervised`.
    """

    def __init__(
        self,
        inputs: int = 784,
        classes: int = 10,
        hidden: tuple[int, int] = (128, 256),
        learning_rate: float = 1e-3,
        optimizer: Optimizer = "adam",
        momentum: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, optimizer, momentum, outputs=classes, **options)
        self.layer_1 = nn.Linear(inputs, hidden[0])
        self.layer_2 = nn.Linear(hidden[0], hidden[1])
        self.layer_3 = nn.Linear(hidden[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Output [batch, classes] for inputs [batch, ...]."""
        x = torch.relu(self.layer_1(flat(x)))
        x = torch.relu(self.layer_2(x))
        return self.output(self.layer_3(x))


class TwoNN(MLP):
    """The 2NN, ``inputs``-200-200-``classes``, trained with SGD.

    Source: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of
    Deep Networks from Decentralized Data", AISTATS 2017, section 3.
    """

    def __init__(
        self,
        inputs: int = 784,
        classes: int = 10,
        learning_rate: float = 0.1,
        optimizer: Optimizer = "sgd",
        momentum: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(inputs, classes, (200, 200), learning_rate, optimizer, momentum, **options)
