"""The training loss and what a module logs during a fit without a Trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flsimulation.training.facts import Progress
from flsimulation.training.logged import CannotTake, Log, Logged, reduced


class Noted:
    """Takes the place of ``self.log``, and adds up the training loss.

    Parameters
    ----------
    progress : Progress
        Of the fit.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._step, self._end = Log(training=True), Log(training=False)
        self._active: Log | None = None
        self._how: list[Logged] | None = None
        self._values: list[list[Tensor | float]] = []
        self._sizes: list[list[int]] = []
        self._losses: list[Tensor | float] = []
        self._examples: list[int] = []
        self._type: Any = np.float32

    def log(self, name: str, value: Any, *positional: Any, **how: Any) -> None:
        """``LightningModule.log``. Raises `NeedsTrainer` for what only a Trainer takes."""
        if self._active is None or (self._active is self._end and how.get("on_step")):
            self._progress.miss(f"the module logs {name!r} outside of its training_step")
        try:
            self._active.log(name, value, *positional, **how)
        except CannotTake as reason:
            self._progress.miss(f"training_step {reason}")

    def log_dict(self, dictionary: Any, *positional: Any, **how: Any) -> None:
        """``LightningModule.log_dict``. Raises `NeedsTrainer`."""
        Log.log_dict(self, dictionary, *positional, **how)  # type: ignore[arg-type]

    def begin_epoch(self) -> None:
        """Forget the epoch before."""
        self._values, self._sizes, self._losses, self._examples = [], [], [], []

    def begin_step(self) -> None:
        """Take what a training step logs."""
        self._active = self._step
        if self._step.how:
            self._step.how.clear()
            self._step.values.clear()

    def end_step(self) -> None:
        """Take nothing more."""
        self._active = None

    def add(self, loss: Tensor | None, examples: int) -> None:
        """Keep what the last training step logged, and its loss.

        Parameters
        ----------
        loss : Tensor, optional
            The mean over the batch's examples, divided for an accumulation.
        examples : int
            In the batch.
        """
        if loss is not None:
            self._type = np.float64 if loss.dtype is torch.float64 else np.float32
            self._losses.append(_kept(loss))
            self._examples.append(examples)
        how = self._step.how
        if how or self._how is None or self._how:
            self._keep(how, examples)

    def _keep(self, how: list[Logged], examples: int) -> None:
        sizes = [logged.batch_size or examples for logged in how]
        own = [
            Logged(one.name, one.on_step, one.on_epoch, one.reduction, None)
            if one.batch_size is not None
            else one
            for one in how
        ]
        if self._how is None:
            self._how = own
        elif self._how != own:
            self._progress.miss("training_step logs something else for other batches")
        self._values.append([_kept(value) for value in self._step.values])
        self._sizes.append(sizes)

    def begin_end(self) -> None:
        """Take what the hook at the end of an epoch logs."""
        self._end.how.clear()
        self._end.values.clear()
        self._active = self._end

    @property
    def mean_loss(self) -> float | None:
        """Mean over the last epoch's examples; None where no batch returned a loss."""
        if not self._losses:
            return None
        losses = np.array([float(loss) for loss in self._losses], self._type)
        total: Any = 0.0
        for loss, examples in zip(losses, self._examples, strict=True):  # as the Trainer's callback
            total = total + loss * (examples * self._progress.accumulate)
        return float(total) / sum(self._examples)

    def logged(self) -> dict[str, float]:
        """All that was logged, by the names that Lightning gives it."""
        found: dict[str, float] = {}
        if self._how and self._values:
            values = np.array([[float(value) for value in step] for step in self._values])
            sizes = np.array(self._sizes)
            found = reduced(self._how, values, sizes)
        if not self._end.how:
            return found
        ends = np.array([[value.item() for value in self._end.values]])
        if found.keys() & {one.name for one in self._end.how}:
            self._progress.miss(
                "the module logs a name in its training_step and at its epoch's end"
            )
        how = [Logged(one.name, False, True, one.reduction, None) for one in self._end.how]
        return found | reduced(how, ends, np.ones(1, int), training=False)


def _kept(value: Tensor) -> Tensor | float:
    """The number as it is now; one on a GPU is waited for when it is needed."""
    return value.item() if value.is_cpu else value.detach().clone()
