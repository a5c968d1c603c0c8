"""The model of ``hospitals.toml``: risk of a patient's readmission, from six numbers."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as it is always called


class Readmission(pl.LightningModule):
    """A small perceptron with two classes.

    Parameters
    ----------
    inputs : int
        Numbers per patient: three measured ones, and one for each ward.
    learning_rate : float
        Of Adam.
    """

    def __init__(self, inputs: int = 6, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 2))
        self.learning_rate = learning_rate

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of a batch."""
        x, y = batch
        return F.cross_entropy(self.layers(x), y)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Loss and accuracy of a batch."""
        x, y = batch
        scores = self.layers(x)
        self.log("val_loss", F.cross_entropy(scores, y))
        self.log("val_accuracy", (scores.argmax(dim=1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
