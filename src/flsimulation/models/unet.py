"""A small U-Net, for one class per pixel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.models.supervised import Optimizer, Supervised


class UNet(Supervised):
    """Two steps down and up again with skip connections, 3x3 convolutions, GroupNorm.

    Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
    Segmentation", MICCAI 2015; here with three levels, padded convolutions, and normalisation by
    groups of channels, whose statistics no client shares.

    Parameters
    ----------
    channels, classes : int
        Channels of the images, and number of classes.
    width : int
        Channels of the first level; the levels below have twice and four times as many.
    learning_rate, optimizer, momentum, **options
        See `Supervised`.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        width: int = 16,
        learning_rate: float = 1e-3,
        optimizer: Optimizer = "adam",
        momentum: float = 0.0,
        **options: Any,
    ) -> None:
        options = {"task": "segmentation", **options}
        super().__init__(learning_rate, optimizer, momentum, outputs=classes, **options)
        self.down_1 = _block(channels, width)
        self.down_2 = _block(width, 2 * width)
        self.bottom = _block(2 * width, 4 * width)
        self.up_2 = _block(6 * width, 2 * width)
        self.up_1 = _block(3 * width, width)
        self.last = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes, height, width] of images [batch, channels, height, width]."""
        first = self.down_1(x)
        second = self.down_2(functional.max_pool2d(first, 2))
        bottom = self.bottom(functional.max_pool2d(second, 2))
        second = self.up_2(torch.cat([_enlarged(bottom, second), second], dim=1))
        first = self.up_1(torch.cat([_enlarged(second, first), first], dim=1))
        return self.output(self.last(first))


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the height and width of another, so that images may have any side from 4 on."""
    return functional.interpolate(x, size=like.shape[-2:])


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [
            nn.Conv2d(before, outputs, kernel_size=3, padding=1),
            nn.GroupNorm(math.gcd(4, outputs), outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
