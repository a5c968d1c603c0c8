"""The CNN of McMahan et al., "Communication-Efficient Learning ...", AISTATS 2017, section 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.models.supervised import Optimizer, Supervised


class CNN(Supervised):
    """Two 5x5 convolutions, each with 2x2 max pooling, and one hidden layer, trained with SGD.

    Parameters
    ----------
    channels, side, classes : int
        Channels and side of the square input images, and number of classes; those of MNIST.
    width : int
        Channels of the first convolution; the second has twice as many.
    hidden : int
        Units of the hidden layer.
    learning_rate, optimizer, momentum, **options
        See `Supervised`.
    """

    def __init__(
        self,
        channels: int = 1,
        side: int = 28,
        classes: int = 10,
        width: int = 32,
        hidden: int = 512,
        learning_rate: float = 0.1,
        optimizer: Optimizer = "sgd",
        momentum: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, optimizer, momentum, outputs=classes, **options)
        self.conv_1 = nn.Conv2d(channels, width, kernel_size=5, padding=2)
        self.conv_2 = nn.Conv2d(width, 2 * width, kernel_size=5, padding=2)
        self.layer_1 = nn.Linear(2 * width * (side // 4) ** 2, hidden)
        self.layer_2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Output [batch, classes] for images [batch, channels, side, side]."""
        x = functional.max_pool2d(torch.relu(self.conv_1(x)), 2)  # [batch, width, side/2, side/2]
        x = functional.max_pool2d(torch.relu(self.conv_2(x)), 2)  # [batch, 2 width, side/4, side/4]
        return self.output(self.layer_2(torch.relu(self.layer_1(x.flatten(1)))))
