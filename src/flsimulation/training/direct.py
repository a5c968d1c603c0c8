"""A module's evaluation without a Trainer, whose start costs more than a small model's scores."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden

from flsimulation import seeds
from flsimulation.errors import ClientError, describe_error
from flsimulation.training.batches import Batches
from flsimulation.training.failures import too_late
from flsimulation.training.local import State
from flsimulation.training.logged import CannotTake, Log, Logged, reduced
from flsimulation.training.scores import scores
from flsimulation.training.stackable import overridden
from flsimulation.training.step import NotStackable, watched

_STEPS = ("validation_step", "test_step")  # the first that the module has is its evaluation

_AROUND = {
    *("setup", "teardown", "prepare_data", "configure_model", "configure_sharded_model"),
    *("configure_callbacks", "transfer_batch_to_device", "on_before_batch_transfer"),
    *("on_after_batch_transfer", "eval", "train", "to", "load_state_dict", "log", "log_dict"),
}  # what Lightning calls around an evaluation step


class DirectEvaluator:
    """Calls a module's own evaluation step batch by batch, as Lightning would.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    gpu : bool
        Evaluate on the GPU.

    Raises
    ------
    NotStackable
        If the evaluation is more than its step.
    """

    def __init__(self, module: pl.LightningModule, *, gpu: bool = False) -> None:
        own = [step for step in _STEPS if is_overridden(step, module)]
        if not own:
            raise NotStackable("the module has no validation_step")
        stage = own[0].removesuffix("_step")
        for name in sorted(overridden(type(module))):
            if name.startswith(f"on_{stage}_") or name in _AROUND:
                raise NotStackable(f"the module has a {name} of its own")
        self._step, self._log = own[0], Log(training=False)
        self._device = torch.device("cuda" if gpu else "cpu")
        self._module = watched(copy.deepcopy(module).to(self._device).eval(), self._log)
        self._tensors: dict[int, Any] = {
            id(tensor): tensor for tensor in self._module.state_dict(keep_vars=True).values()
        }
        self._takes_number = len(inspect.signature(getattr(module, self._step)).parameters) > 1

    def evaluate(
        self, state: State, batches: Batches, *, seed: int = 0, expires: float | None = None
    ) -> dict[str, float]:
        """What `LocalTrainer.evaluate` gives for the same, and raises.

        Raises
        ------
        NotStackable
            If the step asks for what only a Trainer has.
        """
        self._module.load_state_dict(state)
        module = copy.deepcopy(self._module, dict(self._tensors))  # as new: a step may change it
        how, values, sizes = list[Logged](), list[list[float]](), list[list[int]]()
        with seeds.global_streams(seed), torch.inference_mode():
            for number, (x, y) in enumerate(batches):
                if expires is not None and time.time() > expires:
                    raise too_late()
                self._log.how.clear()
                self._log.values.clear()
                batch = x.to(self._device), y.to(self._device)
                try:
                    getattr(module, self._step)(batch, *([number] if self._takes_number else []))
                except (CannotTake, NotStackable) as reason:
                    raise NotStackable(f"{self._step} {reason}") from None
                except Exception as error:
                    raise ClientError("error", describe_error(error)) from error
                found = [dataclasses.replace(logged, batch_size=None) for logged in self._log.how]
                if number and found != how:
                    raise NotStackable(f"{self._step} logs something else for other batches")
                how = found
                values.append([float(value) for value in self._log.values])
                sizes.append([logged.batch_size or len(x) for logged in self._log.how])
        if not how:
            return {}
        return scores(reduced(how, np.array(values), np.array(sizes), training=False))
