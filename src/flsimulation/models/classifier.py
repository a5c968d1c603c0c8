"""What the shipped models share: cross-entropy, accuracy, SGD or Adam."""

from __future__ import annotations

from typing import Literal, TypeAlias

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs, float32 [batch, ...], and labels, int64 [batch]."""
Optimizer: TypeAlias = Literal["sgd", "adam"]


class Classifier(pl.LightningModule):
    """A classifier trained with cross-entropy; subclasses define ``forward``.

    Parameters
    ----------
    learning_rate : float
        Step size of the clients' optimizer.
    optimizer : {"sgd", "adam"}
        The clients' optimizer.
    momentum : float
        Momentum of SGD; Adam ignores it.
    """

    def __init__(self, learning_rate: float, optimizer: Optimizer, momentum: float = 0.0) -> None:
        super().__init__()
        if optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {optimizer!r}")
        if learning_rate <= 0:
            raise ValueError(f"learning_rate must be > 0, got {learning_rate}")
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.momentum = momentum

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch, a scalar.

        It is not logged: the engine averages the returned loss, and ``self.log`` costs
        a small model a fifth of its time.
        """
        x, y = batch
        return functional.cross_entropy(self(x), y)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the mean cross-entropy and the accuracy (0..1) of the batch."""
        x, y = batch
        logits = self(x)
        self.log("val_loss", functional.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(dim=1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A new optimizer, without any state of an earlier fit."""
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=self.momentum)
