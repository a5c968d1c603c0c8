"""Lightning callbacks that make a client's fit a federated one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from flsimulation.clock import SYSTEM, Clock
from flsimulation.training.failures import too_late
from flsimulation.training.form import examples_of
from flsimulation.training.rates import scale_rates


class TrainingLoss(pl.Callback):
    """Mean of the training loss over the examples of the last epoch."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._examples = 0

    @property
    def mean(self) -> float | None:
        """The mean; None where the module returns no loss (manual optimization may)."""
        return float(self._sum) / self._examples if self._examples else None

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Forget the epoch before."""
        self._sum, self._examples = 0.0, 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the batch's mean loss, weighted by its examples."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            examples = examples_of(batch)
            divided = trainer.accumulate_grad_batches if module.automatic_optimization else 1
            loss = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))
            self._sum = self._sum + loss * (examples * divided)
            self._examples += examples


class Proximal(pl.Callback):
    """FedProx's proximal term mu/2 |w - w_global|^2, as its gradient mu (w - w_global).

    It acts on the gradients, so that any module's own ``training_step`` stays as it is. Source:
    Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
    Networks", MLSys 2020, equation 2.
    """

    def __init__(self, mu: float, module: pl.LightningModule) -> None:
        self._mu = mu
        self._start = {parameter: parameter.detach().clone() for parameter in module.parameters()}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the term's gradient to the others."""
        self.add_to(optimizer)

    @torch.no_grad()
    def add_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the term's gradient to every parameter that the optimizer is about to move."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    start = self._start[parameter].to(parameter)  # also in its precision
                    parameter.grad.add_(parameter - start, alpha=self._mu)


class Rates(pl.Callback):
    """Take every step with the module's learning rates times a factor.

    Before, let ``configure_optimizers`` know how many batches the client has.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Count the batches, which a Trainer does only afterwards."""
        trainer.fit_loop.setup_data()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Scale the rates of what ``configure_optimizers`` has returned."""
        for optimizer in trainer.optimizers:
            scale_rates(optimizer, self._factor)


class Deadline(pl.Callback):
    """Stop the client once its result is too late.

    Parameters
    ----------
    expires : float
        Unix time in seconds.
    clock : Clock
        The clock to use.
    """

    def __init__(self, expires: float, clock: Clock = SYSTEM) -> None:
        self._expires, self._clock = expires, clock

    def _check(self, *_: Any, **__: Any) -> None:
        if self._clock.time() > self._expires:
            raise too_late()

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = _check
