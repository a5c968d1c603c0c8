"""What ``configure_optimizers`` returned, in a fit without a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flsimulation.training.facts import Progress
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.eligible import Scheduler, parsed

_INTERVALS = ("step", "epoch")


class Configured:
    """A client's optimizer, and its schedulers with their turns.

    Parameters
    ----------
    configured : object
        What the module returned.
    progress : Progress
        Of the fit; it receives them.
    step : callable, optional
        The module's own ``lr_scheduler_step``.

    Raises
    ------
    NeedsTrainer
        If it is more than one optimizer, or a scheduler goes by a metric.
    """

    def __init__(
        self, configured: Any, progress: Progress, step: Callable[[Any, None], Any] | None
    ) -> None:
        try:
            self.optimizer, schedulers = parsed(configured)
        except NotStackable as reason:
            progress.miss(str(reason))
        if any(one.frequency < 1 or one.interval not in _INTERVALS for one in schedulers):
            progress.miss("its scheduler steps in a way of its own")
        progress.optimizers, progress.schedulers = [self.optimizer], schedulers
        self._progress, self._step = progress, step
        self.by_step = [one for one in schedulers if one.interval == "step"]
        self.by_epoch = [one for one in schedulers if one.interval == "epoch"]

    def after_batch(self, index: int, *, stepped: bool) -> None:
        """Step the schedulers whose turn it is.

        Parameters
        ----------
        index : int
            Number of the batch in its epoch.
        stepped : bool
            Whether the optimizer has taken a step, or an epoch ended.
        """
        if self.by_step and stepped:
            self._each(self.by_step, index + 1)
        if self.by_epoch and self._progress.is_last:
            self._each(self.by_epoch, self._progress.epoch + 1)

    def _each(self, schedulers: list[Scheduler], count: int) -> None:
        for one in schedulers:
            if count % one.frequency:
                continue
            if self._step is None:
                one.scheduler.step()
            else:
                self._step(one.scheduler, None)
