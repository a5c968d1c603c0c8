"""What a module may read of the Trainer while it is trained without one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch.optim import Optimizer

from flsimulation.models.lightning_modules import SILENT


class NeedsTrainer(Exception):  # noqa: N818 - no error: the client is trained with the Trainer
    """Why a client cannot be trained without Lightning's Trainer, as the end of a sentence."""


class OneDevice:
    """What every Trainer on one device has in common."""

    global_rank = local_rank = node_rank = 0
    num_devices = num_nodes = world_size = 1
    max_steps, datamodule, is_global_zero = -1, None, True
    logger, loggers = SILENT, (SILENT,)


@dataclass
class Progress:
    """How far a fit is, and with what it trains."""

    epochs: int
    batches: int
    """Batches in an epoch."""
    accumulate: int = 1
    """Batches for each optimizer step."""
    epoch: int = 0
    """Epochs that are completed."""
    steps: int = 0
    """Optimizer steps that were taken."""
    is_last: bool = False
    """Whether the batch is the epoch's last."""
    optimizers: list[Optimizer] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    missed: str | None = None
    """What was asked for that only a Trainer has, also if the module went on without it."""

    def miss(self, reason: str) -> NoReturn:
        """Note what only a Trainer has. Raises `NeedsTrainer`."""
        self.missed = self.missed or reason
        raise NeedsTrainer(reason)


class Facts(OneDevice):
    """Stands in for the Trainer of a module that is trained without one.

    Parameters
    ----------
    progress : Progress
        Of the fit.
    strategy : object
        What ``trainer.strategy`` is.
    precision_plugin : object
        What ``trainer.precision_plugin`` is.
    gradient_clip : float or None
        Largest norm of the gradient.
    """

    _progress: Progress
    gradient_clip_algorithm = None
    training, fast_dev_run = True, False
    validating = testing = predicting = evaluating = sanity_checking = should_stop = False

    def __init__(
        self, progress: Progress, strategy: Any, precision_plugin: Any, gradient_clip: float | None
    ) -> None:
        given = {
            "_progress": progress,
            "strategy": strategy,
            "precision_plugin": precision_plugin,
            "gradient_clip_val": gradient_clip,
            "loggers": [SILENT],
            "max_epochs": progress.epochs,
            "num_training_batches": progress.batches,
            "accumulate_grad_batches": progress.accumulate,
        }
        vars(self).update(given)

    @property
    def current_epoch(self) -> int:
        """Epochs that are completed."""
        return self._progress.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps that were taken."""
        return self._progress.steps

    @property
    def estimated_stepping_batches(self) -> int:
        """Optimizer steps of the fit."""
        each = math.ceil(self._progress.batches / self._progress.accumulate)
        return each * self._progress.epochs

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch is the epoch's last."""
        return self._progress.is_last

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizer."""
        return self._progress.optimizers

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        """The schedulers, each with its interval and frequency."""
        return self._progress.schedulers

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for what is not there
            raise AttributeError(name)
        return self._progress.miss(f"uses self.trainer.{name}")

    def __setattr__(self, name: str, _: Any) -> None:
        self._progress.miss(f"sets self.trainer.{name}")


class Strategy:
    """Stands in for ``trainer.strategy``: the optimizer as Lightning wraps it.

    Parameters
    ----------
    progress : Progress
        Of the fit.
    root_device : device
        Where it trains.
    wrapper : type
        The ``LightningOptimizer`` of the module's package.
    step : callable
        ``step(closure, **options)`` of the wrapped optimizer.
    """

    def __init__(self, progress: Progress, root_device: Any, wrapper: type, step: Any) -> None:
        self._progress, self.root_device = progress, root_device
        self._wrapper, self._step = wrapper, step
        self._wrapped: list[Any] = []

    @property
    def _lightning_optimizers(self) -> list[Any]:  # the name that ``self.optimizers()`` reads
        if not self._wrapped:
            self._wrapped = [self._wrapper(optimizer) for optimizer in self._progress.optimizers]
            for wrapped in self._wrapped:
                wrapped._strategy = self
        return self._wrapped

    def optimizer_step(self, _: Optimizer, closure: Any, **options: Any) -> Any:
        """Take a step of the wrapped optimizer."""
        return self._step(closure, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._progress.miss(f"uses self.trainer.strategy.{name}")
