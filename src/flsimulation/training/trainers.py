"""Lightning's Trainer as the clients of one process share it."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytorch_lightning as pl
import torch

from flsimulation.errors import InputError
from flsimulation.experiment.spec import Train
from flsimulation.models.lightning_modules import SILENT, package_of


def takes_gpu(spec: Train) -> bool:
    """Whether training is to be on a GPU."""
    return spec.device != "cpu" and torch.cuda.is_available()


def require_own_steps(module: pl.LightningModule, spec: Train) -> None:
    """Raise `InputError` where a module's manual optimization would not do as the keys say."""
    if module.automatic_optimization:
        return
    for key, unset, asked in (
        ("accumulate", 1, spec.accumulate),
        ("gradient-clip", 0, spec.gradient_clip),
    ):
        if asked != unset:
            raise InputError(
                f"train.{key} is {asked:g}, but {type(module).__name__} optimizes by itself "
                f"(automatic_optimization = False); do so in its training_step, or set the key to "
                f"{unset}"
            )


class KeptTrainer:
    """A Lightning Trainer that starts from zero for each client without being built again."""

    def __init__(self, spec: Train, module: type) -> None:
        gpu = takes_gpu(spec)
        trainer = package_of(module).Trainer(
            accelerator="gpu" if gpu else "cpu",
            devices=1,
            max_epochs=spec.epochs,
            gradient_clip_val=spec.gradient_clip or None,
            accumulate_grad_batches=spec.accumulate,
            precision=spec.precision,
            deterministic="warn" if gpu else None,
            logger=SILENT,
            log_every_n_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        self._trainer = cast(Any, trainer)  # its list of callbacks has no declared type
        self._callbacks = list(self._trainer.callbacks)
        self._start = copy.deepcopy(self._trainer.fit_loop.state_dict())
        self._scaling = copy.deepcopy(self._trainer.precision_plugin.state_dict())

    def rewound(self, extra: list[pl.Callback]) -> pl.Trainer:
        """The Trainer with all progress at zero and only its own and the extra callbacks."""
        fit = self._trainer.fit_loop
        fit.load_state_dict(copy.deepcopy(self._start))
        for loop in (fit, fit.epoch_loop, fit.epoch_loop.val_loop):
            loop.on_iteration_done()  # a loaded state alone would count as a resumed run
        if self._scaling:  # of the loss, in 16-mixed: it adapts to a client's gradients
            self._trainer.precision_plugin.load_state_dict(copy.deepcopy(self._scaling))
        # a module's own configure_callbacks() adds to this list
        self._trainer.callbacks[:] = [*self._callbacks, *extra]
        return cast(pl.Trainer, self._trainer)
