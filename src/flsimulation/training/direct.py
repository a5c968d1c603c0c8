"""A module's evaluation without a Trainer, whose start costs more than a small model's scores."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from flsimulation import seeds
from flsimulation.clock import SYSTEM, Clock
from flsimulation.errors import ClientError, describe_error
from flsimulation.models.lightning_modules import defines
from flsimulation.training.batches import Batches
from flsimulation.training.failures import too_late
from flsimulation.training.jobs import State
from flsimulation.training.logged import CannotTake, Log, Logged, reduced
from flsimulation.training.scores import scores
from flsimulation.training.stacked.compiler.step import NotStackable, watched
from flsimulation.training.stacked.effects import attributes
from flsimulation.training.stacked.eligible import overridden

_STEPS = ("validation_step", "test_step")  # the first that the module has is its evaluation

_AROUND = {
    *("setup", "teardown", "prepare_data", "configure_model", "configure_sharded_model"),
    *("configure_callbacks", "transfer_batch_to_device", "on_before_batch_transfer"),
    *("on_after_batch_transfer", "eval", "train", "to", "load_state_dict", "log", "log_dict"),
}  # what Lightning calls around an evaluation step


class EvaluationStep(NamedTuple):
    """What an evaluation step logged of one batch."""

    how: list[Logged]
    """Without the sizes."""
    sizes: list[int]
    """Weight of each value in a mean over batches: the batch's examples, unless the module says."""
    values: list[Any]
    """Numbers, or tensors that hold them."""


class DirectEvaluator:
    """Calls a module's own evaluation step batch by batch, as Lightning would.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    gpu : bool
        Evaluate on the GPU.
    clock : Clock
        The clock to use.

    Raises
    ------
    NotStackable
        If the evaluation is more than its step.
    """

    def __init__(
        self, module: pl.LightningModule, *, gpu: bool = False, clock: Clock = SYSTEM
    ) -> None:
        own = [step for step in _STEPS if defines(step, module)]
        if not own:
            raise NotStackable("the module has no validation_step")
        stage = own[0].removesuffix("_step")
        for name in sorted(overridden(type(module))):
            if name.startswith(f"on_{stage}_") or name in _AROUND:
                raise NotStackable(f"the module has a {name} of its own")
        self._step, self._log = own[0], Log(training=False)
        self.device, self.clock = torch.device("cuda" if gpu else "cpu"), clock
        self._module = watched(copy.deepcopy(module).to(self.device).eval(), self._log)
        self._tensors: dict[int, Any] = {
            id(tensor): tensor for tensor in self._module.state_dict(keep_vars=True).values()
        }
        self._takes_number = len(inspect.signature(getattr(module, self._step)).parameters) > 1
        self._used, self._state, self._new = self._module, State(), list[Any]()
        self._round = 0

    def evaluate(
        self,
        state: State,
        batches: Batches,
        *,
        seed: int = 0,
        expires: float | None = None,
        round: int = 0,
    ) -> dict[str, float]:
        """What `LocalTrainer.evaluate` returns and raises for the same arguments.

        The model is loaded again only if ``state`` is not that of the last call.

        Raises
        ------
        NotStackable
            If the step needs what only a Trainer has.
        """
        self.load(state, round)
        steps = list[EvaluationStep]()
        with seeds.global_streams(seed), torch.inference_mode():
            for number, (x, y) in enumerate(batches):
                if expires is not None and self.clock.time() > expires:
                    raise too_late()
                try:
                    step = self.step(x.to(self.device), y.to(self.device), number)
                except (CannotTake, NotStackable) as reason:
                    raise NotStackable(f"{self._step} {reason}") from None
                except Exception as error:
                    raise ClientError("error", describe_error(error)) from error
                steps.append(step._replace(values=[float(value) for value in step.values]))
        return self.scores(steps)

    def load(self, state: State, round: int = 0) -> None:
        """Have the module as new, with this model: a step may have changed it."""
        if state is self._state and round == self._round and self.is_new:
            return
        self._module.load_state_dict(state)
        self._module.federated_round = round  # type: ignore[assignment]
        self._round = round
        self._used = copy.deepcopy(self._module, dict(self._tensors))
        self._state, self._new = state, attributes(self._used, strict=True)

    @property
    def is_new(self) -> bool:
        """Whether the steps that were taken since the model was loaded have changed nothing."""
        return attributes(self._used, strict=True) == self._new

    def step(self, x: Tensor, y: Tensor, number: int = 0) -> EvaluationStep:
        """Take the module's step for a batch, which is on the device."""
        self._log.how.clear()
        self._log.values.clear()
        getattr(self._used, self._step)((x, y), *([number] if self._takes_number else []))
        how = [dataclasses.replace(logged, batch_size=None) for logged in self._log.how]
        sizes = [logged.batch_size or len(x) for logged in self._log.how]
        return EvaluationStep(how, sizes, list(self._log.values))

    def scores(self, steps: Sequence[EvaluationStep]) -> dict[str, float]:
        """Scores over all batches of a client. Raises `NotStackable`."""
        how = steps[0].how if steps else []
        if any(step.how != how for step in steps):
            raise NotStackable(f"{self._step} logs something else for other batches")
        if not how:
            return {}
        values, sizes = (
            np.array(kind) for kind in ([s.values for s in steps], [s.sizes for s in steps])
        )
        return scores(reduced(how, values, sizes, training=False))
