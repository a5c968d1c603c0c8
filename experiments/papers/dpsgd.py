"""The network and the settings of TF-privacy's and Opacus' MNIST examples of DP-SGD."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional


class Tutorial(pl.LightningModule):
    """Two convolutions and two dense layers, 26,010 parameters.

    Parameters
    ----------
    learning_rate : float
        Of SGD.
    mean, deviation : float
        Pixels, 0 to 1, are shifted and scaled by these.
    """

    def __init__(self, learning_rate: float, mean: float = 0.0, deviation: float = 1.0) -> None:
        super().__init__()
        self.learning_rate, self.mean, self.deviation = learning_rate, mean, deviation
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
            *(nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten()),
            *(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers((x - self.mean) / self.deviation)
        return found

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        scores = self(x)
        self.log("val_loss", functional.cross_entropy(scores, y))
        self.log("val_accuracy", (scores.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)
