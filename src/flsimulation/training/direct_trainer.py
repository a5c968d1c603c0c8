"""One client's update in a plain PyTorch loop, with the results of Lightning's Trainer.

`LocalTrainer` is the reference: what a module does there and not here is a reason to train it there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torchmetrics import Metric

from flsimulation import seeds
from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.leaves import Leaves
from flsimulation.errors import ClientError
from flsimulation.experiment.spec import Train
from flsimulation.models.lightning_modules import defines
from flsimulation.training.alone import unnoticed
from flsimulation.training.around import Around
from flsimulation.training.batches import Batches
from flsimulation.training.callbacks import Proximal
from flsimulation.training.copies import Copies
from flsimulation.training.facts import NeedsTrainer, Progress
from flsimulation.training.failures import (
    first_diverged,
    loss_not_finite,
    no_step,
    too_late,
    weights_not_finite,
)
from flsimulation.training.jobs import State, Trained
from flsimulation.training.lightning import client_error, exchanged, silent
from flsimulation.training.loop import Loop
from flsimulation.training.measured import keep_undefined
from flsimulation.training.precisions import Precision
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.probe import few, is_cheap
from flsimulation.training.rates import rate_factor
from flsimulation.training.scores import scores
from flsimulation.training.stacked.eligible import overridden
from flsimulation.training.trainers import takes_gpu

_REFUSED = {
    *("configure_callbacks", "configure_model", "configure_sharded_model", "prepare_data"),
    *("log", "log_dict", "val_dataloader", "trainer"),
}  # of a fit with the Trainer, and more than a loop
_HOOKS = {
    *("setup", "teardown", "zero_grad", "to", "backward", "on_fit_start", "on_fit_end"),
    *("on_train_start", "on_train_end", "on_train_epoch_start", "on_train_epoch_end"),
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "optimizer_zero_grad"),
    *("on_before_backward", "on_after_backward", "on_before_optimizer_step", "optimizer_step"),
    *("configure_gradient_clipping", "lr_scheduler_step", "on_before_batch_transfer"),
    *("transfer_batch_to_device", "on_after_batch_transfer"),
}
_TRIED = 2  # epochs of a trial, if a fit has more


class DirectTrainer:
    """Trains clients one after the other, each a fresh copy of the module.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    spec : Train
        How clients train.
    clock : Clock
        The clock to use.

    Raises
    ------
    NeedsTrainer
        If a fit of the module is more than its step, its optimizer and its hooks.
    """

    def __init__(self, module: pl.LightningModule, spec: Train, clock: Clock = SYSTEM) -> None:
        self._module, self._spec, self._clock = module, spec, clock
        own = overridden(type(module))
        _check(module, spec, own)
        self._hooks = dict.fromkeys(sorted(_HOOKS & (own | vars(module).keys())))
        self._takes_index = is_param_in_hook_signature(
            module.training_step, "batch_idx", min_args=2
        )
        self._prints = defines("print", module)
        self._has_metrics = any(isinstance(part, Metric) for part in module.modules())
        self._device = torch.device("cuda" if takes_gpu(spec) else "cpu")
        self._kinds = {name: value.dtype for name, value in module.state_dict().items()}
        self._state, self._round = State(), 0
        self._copies = self._originals = Copies(module)
        if self._device.type == "cuda":  # as the Trainer does
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)

    def fit(
        self,
        state: State,
        batches: Batches,
        *,
        seed: int,
        proximal_mu: float = 0.0,
        expires: float | None = None,
        round: int = 0,
    ) -> Trained:
        """What `LocalTrainer.fit` returns and raises for the same arguments.

        Raises
        ------
        NeedsTrainer
            If the module asks for what only a Trainer has.
        """
        began = self._clock.monotonic()
        module = self._fresh(state, round)
        progress = Progress(self._spec.epochs, len(batches), self._spec.accumulate)
        around = self._around(module, proximal_mu, expires, round)
        loop = Loop(module, self._hooks, self._takes_index, batches, progress, around)
        try:
            with seeds.global_streams(seed):
                loop.run()
            return self._trained(loop, module, state, began)
        except NeedsTrainer:
            raise
        except (Exception, SystemExit) as error:
            if progress.missed is not None:
                raise NeedsTrainer(progress.missed) from None
            if isinstance(error, ClientError):
                raise
            raise client_error(error) from error
        finally:
            loop.release()

    def why_not(self, x: Leaves, y: Leaves, prepared: Preparation = PLAIN) -> str | None:
        """Why clients need the Trainer, found with a few steps on two examples; None if they do not.

        Parameters
        ----------
        x, y : Tensor or dict of Tensor
            Inputs and targets of the data set, [n, ...].
        prepared : Preparation
            How batches are prepared for the module.
        """
        if not is_cheap(self._module):
            return None
        rows = few(x, y)
        batches = Batches(
            *(x, y, np.concatenate([rows, rows]), max(1, len(rows))),
            lambda: seeds.rng(0, "practice"),
            prepared=prepared,
        )
        try:
            with unnoticed():
                self._tried(batches)
        except NeedsTrainer as reason:
            return str(reason)
        except ClientError:  # the clients report it
            return None
        return None

    def _tried(self, batches: Batches) -> None:
        spec = self._spec
        self._spec = spec.model_copy(update={"epochs": min(spec.epochs, _TRIED)})
        try:
            self.fit(self._module.state_dict(), batches, seed=0, round=1)
        finally:
            self._spec, self._state = spec, State()

    def _fresh(self, state: State, round: int) -> pl.LightningModule:
        """A copy of the module with this model."""
        if state is not self._state or round != self._round:
            original: Any = self._originals()
            original.load_state_dict(state)
            original.federated_round = round
            self._copies, self._state, self._round = Copies(original), state, round
        module: Any = self._copies()
        if not self._prints:
            module.print = silent
        if self._has_metrics:
            keep_undefined(module)
        return module  # type: ignore[no-any-return]

    def _around(
        self, module: pl.LightningModule, mu: float, expires: float | None, round: int
    ) -> Around:
        return Around(
            self._device,
            Precision(self._spec.precision, self._device.type),
            self._spec.gradient_clip,
            rate_factor(self._spec, round),
            Proximal(mu, module) if mu > 0 else None,
            self._check_of(expires),
        )

    def _check_of(self, expires: float | None) -> Callable[[], None] | None:
        if expires is None:
            return None

        def check() -> None:
            if self._clock.time() > expires:
                raise too_late()

        return check

    def _trained(
        self, loop: Loop, module: pl.LightningModule, state: State, began: float
    ) -> Trained:
        mean = loop.noted.mean_loss
        if loop.progress.missed is not None:  # and the module went on without it
            raise NeedsTrainer(loop.progress.missed)
        if mean is None:
            raise no_step()
        logged = scores(loop.noted.logged(), {"loss": mean})
        if not np.isfinite(mean):
            raise loss_not_finite(mean)
        result = exchanged(module, self._kinds)
        if (name := first_diverged(result, state)) is not None:
            raise weights_not_finite(name)
        return Trained(logged, loop.progress.steps, self._clock.monotonic() - began, result)


def _check(module: pl.LightningModule, spec: Train, own: set[str]) -> None:
    """Raise `NeedsTrainer` if a fit is more than a loop over batches."""
    if spec.validate_:
        raise NeedsTrainer("train.validate evaluates between the epochs")
    if not module.automatic_optimization:
        raise NeedsTrainer("the module optimizes by itself")
    if not defines("training_step", module):
        raise NeedsTrainer("the module has no training_step")
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise NeedsTrainer("training_step takes a dataloader_iter")
    for name in sorted(itertools.chain(own & _REFUSED, vars(module).keys() & _REFUSED)):
        raise NeedsTrainer(f"the module has a {name} of its own")
