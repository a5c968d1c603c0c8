"""What a model learns, by the task of the data set: its loss, and its scores.

Scores that are no mean over examples are torchmetrics objects. Their sums are added up over batches
and over clients, so that each is what one pass over all examples would give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MultilabelF1Score,
)
from torchmetrics.regression import R2Score
from torchmetrics.text import Perplexity

from flsimulation.data.task import IGNORED

Task: TypeAlias = Literal["classification", "regression", "multilabel", "segmentation", "language"]
"""What labels are, as in ``data.task``."""
Log: TypeAlias = Callable[[str, Any], None]
"""``self.log`` of a LightningModule."""


class WeightedMean(Metric):
    """Mean of values that count differently, by one division at the end.

    torchmetrics 1.9 has ``MeanMetric``, which looks for NaN in every batch, or, if told not to,
    ignores the weights.
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, values: Tensor, weights: Tensor) -> None:
        """Add values and their weights, of one shape."""
        self.total = self.total + (values * weights).sum()
        self.weight = self.weight + weights.sum()

    def compute(self) -> Tensor:
        """The mean; NaN if nothing counts."""
        return self.total / self.weight


class Goal(nn.Module):
    """A loss, and the scores of an evaluation; it has no parameter and keeps nothing of a model."""

    def __init__(self, **metrics: Metric) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(metrics)

    def output(self, raw: Tensor) -> Tensor:
        """The model's output for what its last layer returns."""
        return raw

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        raise NotImplementedError

    def log_scores(self, log: Log, output: Tensor, y: Tensor) -> None:
        """Log the scores of a batch."""
        raise NotImplementedError

    def _log_metrics(self, log: Log, output: Tensor, y: Tensor) -> None:
        for name, metric in self.metrics.items():
            metric.update(output, y)  # type: ignore[operator]
            log(name, metric)


class Classification(Goal):
    """Cross-entropy and accuracy; labels int64 [batch], or probabilities [batch, classes]."""

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of logits [batch, classes]."""
        return functional.cross_entropy(output, y)

    def log_scores(self, log: Log, output: Tensor, y: Tensor) -> None:
        """Log the mean cross-entropy and the accuracy (0..1)."""
        log("val_loss", functional.cross_entropy(output, y))
        right = y if y.ndim == 1 else y.argmax(dim=1)
        log("val_accuracy", (output.argmax(dim=1) == right).float().mean())


class Regression(Goal):
    """Squared error; targets float32 [batch] or [batch, targets].

    The last layer's output is scaled to the targets', so that learning rates mean the same whatever
    the unit of the targets.

    Parameters
    ----------
    mean, deviation : sequence of float
        Of each target, in the training set.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__(r2=R2Score())
        if len(mean) != len(deviation) or not all(part > 0 for part in deviation):
            raise ValueError(
                f"deviation must have a number above 0 for each mean, got {list(deviation)}"
            )
        for name, values in (("mean", mean), ("deviation", deviation)):
            # not a part of the model that is sent: it is an argument of every client's
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def output(self, raw: Tensor) -> Tensor:
        """Predictions in the unit of the targets, [batch], or [batch, targets] of several."""
        scaled = raw * self.deviation + self.mean
        return scaled.squeeze(1) if len(self.mean) == 1 else scaled

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean squared error in units of the targets' variance."""
        return functional.mse_loss(self._scaled(output), self._scaled(y.view_as(output)))

    def log_scores(self, log: Log, output: Tensor, y: Tensor) -> None:
        """Log the loss and r2, and in the unit of the targets mae and mse."""
        y = y.view_as(output)
        log("val_loss", self.loss(output, y))
        # r2 is the same for scaled numbers, and its sums of float32 need numbers near 0
        self._log_metrics(log, self._scaled(output), self._scaled(y))
        log("mae", functional.l1_loss(output, y))
        log("mse", functional.mse_loss(output, y))

    def _scaled(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.deviation


class Multilabel(Goal):
    """Binary cross-entropy per label; labels float32 0 or 1, [batch, labels].

    Parameters
    ----------
    labels : int
        Number of labels.
    """

    def __init__(self, labels: int) -> None:
        super().__init__(f1=MultilabelF1Score(labels, average="macro", validate_args=False))

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean binary cross-entropy of logits [batch, labels]."""
        return functional.binary_cross_entropy_with_logits(output, y.to(output.dtype))

    def log_scores(self, log: Log, output: Tensor, y: Tensor) -> None:
        """Log the mean binary cross-entropy and the macro F1 at a probability of one half."""
        log("val_loss", self.loss(output, y))
        self._log_metrics(log, output.sigmoid(), y.long())


class Segmentation(Goal):
    """Cross-entropy per pixel; labels int64 [batch, height, width], or with one channel.

    Parameters
    ----------
    classes : int
        Number of classes; dice and IoU are means over them, background included.
    """

    def __init__(self, classes: int) -> None:
        options: dict[str, Any] = {"ignore_index": IGNORED, "validate_args": False}
        super().__init__(
            dice=MulticlassF1Score(classes, average="macro", **options),
            iou=MulticlassJaccardIndex(classes, average="macro", **options),
        )
        self.mean = WeightedMean()

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of logits [batch, classes, ...] over all labels that count."""
        return _cross_entropy(output, _of_pixels(output, y))

    def log_scores(self, log: Log, output: Tensor, y: Tensor) -> None:
        """Log the mean cross-entropy over all pixels that count, dice (F1 of pixels) and IoU."""
        y = _of_pixels(output, y)
        self._log_loss(log, output, y)
        self._log_metrics(log, output.argmax(dim=1), y)

    def _log_loss(self, log: Log, output: Tensor, y: Tensor) -> None:
        each = functional.cross_entropy(output, y, ignore_index=IGNORED, reduction="none")
        self.mean.update(each, (y != IGNORED).to(each.dtype))
        log("val_loss", self.mean)


def _of_pixels(output: Tensor, y: Tensor) -> Tensor:
    """Labels without an axis of one channel, [batch, ...] of logits [batch, classes, ...]."""
    return y if y.ndim < output.ndim else y.reshape(len(y), *output.shape[2:])


class Language(Goal):
    """Cross-entropy of the next token; labels int64 [batch, tokens]."""

    def __init__(self) -> None:
        super().__init__(perplexity=Perplexity(ignore_index=IGNORED))
        self.mean = WeightedMean()
        self.right = WeightedMean()

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of logits [batch, tokens, vocabulary] over all tokens that count."""
        return _cross_entropy(output.flatten(0, 1), y.flatten())

    def log_scores(self, log: Log, output: Tensor, y: Tensor) -> None:
        """Log the mean cross-entropy, the accuracy (0..1) and the perplexity over all tokens."""
        counts = (y != IGNORED).to(output.dtype)
        each = functional.cross_entropy(
            output.flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="none"
        )
        self.mean.update(each.view_as(counts), counts)
        self.right.update((output.argmax(dim=-1) == y).to(output.dtype), counts)
        log("val_loss", self.mean)
        log("val_accuracy", self.right)
        self._log_metrics(log, output, y)


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy over the labels that count; 0 if none does, where PyTorch's is NaN."""
    total = functional.cross_entropy(output, y, ignore_index=IGNORED, reduction="sum")
    return total / (y != IGNORED).sum().clamp(min=1)


def goal_of(
    task: Task, outputs: int, mean: Sequence[float] = (), deviation: Sequence[float] = ()
) -> Goal:
    """The goal of a task.

    Parameters
    ----------
    task : str
        What the labels are.
    outputs : int
        Classes, labels, numbers to predict, or words of the vocabulary.
    mean, deviation : sequence of float
        Of each number to predict; by default 0 and 1.
    """
    if task == "regression":
        return Regression(list(mean) or [0.0] * outputs, list(deviation) or [1.0] * outputs)
    goals: dict[str, Callable[[], Goal]] = {
        "classification": Classification,
        "multilabel": lambda: Multilabel(outputs),
        "segmentation": lambda: Segmentation(outputs),
        "language": Language,
    }
    if task not in goals:
        raise ValueError(f"task must be regression, {', '.join(goals)}, got {task!r}")
    return goals[task]()


def spread_of(targets: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each target, [n] or [n, targets]; 1 for a constant one."""
    values = targets.double().reshape(len(targets), -1)
    deviations = values.std(dim=0, correction=0).tolist()
    return values.mean(dim=0).tolist(), [
        d if d > 0 and math.isfinite(d) else 1.0 for d in deviations
    ]
