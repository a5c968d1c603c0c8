"""What the shipped models share: a loss and scores by task, SGD or Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import pytorch_lightning as pl
import torch
from torch import Tensor

from flsimulation.models.goals import Task, goal_of

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs [batch, ...] and labels, in the form of the task."""
Optimizer: TypeAlias = Literal["sgd", "adam"]


class Supervised(pl.LightningModule):
    """A model that learns labels; subclasses define ``forward`` as `output` of the last layer.

    Parameters
    ----------
    learning_rate : float
        Step size of the clients' optimizer.
    optimizer : {"sgd", "adam"}
        The clients' optimizer.
    momentum : float
        Momentum of SGD; Adam ignores it.
    task : str
        What the labels are; it decides the loss and the scores.
    outputs : int
        Width of the last layer.
    mean, deviation : sequence of float
        Under ``regression``, of each number to predict; by default 0 and 1.
    """

    def __init__(
        self,
        learning_rate: float,
        optimizer: Optimizer,
        momentum: float = 0.0,
        task: Task = "classification",
        outputs: int = 1,
        mean: Sequence[float] = (),
        deviation: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {optimizer!r}")
        if learning_rate <= 0:
            raise ValueError(f"learning_rate must be > 0, got {learning_rate}")
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.momentum = momentum
        self.goal = goal_of(task, outputs, mean, deviation)

    def output(self, raw: Tensor) -> Tensor:
        """The model's output for what its last layer returns: logits, or predictions."""
        return self.goal.output(raw)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of the batch, a scalar.

        It is not logged: the engine averages the returned loss, and ``self.log`` costs
        a small model a fifth of its time.
        """
        x, y = batch
        return self.goal.loss(self(x), y)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the task's loss and scores."""
        x, y = batch
        self.goal.log_scores(self.log, self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A new optimizer, without any state of an earlier fit."""
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=self.momentum)


def flat(x: Tensor) -> Tensor:
    """Inputs as float32 [batch, inputs]; floats keep their type."""
    return x.flatten(1) if x.is_floating_point() else x.flatten(1).float()
