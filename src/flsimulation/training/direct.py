"""A module's evaluation without a Trainer, whose start costs more than a small model's scores."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
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
from flsimulation.training.form import examples_of, moved
from flsimulation.training.jobs import State
from flsimulation.training.logged import CannotTake, Log, Logged, reduced
from flsimulation.training.measured import Arrays, Measured
from flsimulation.training.objects import MetricObjects
from flsimulation.training.products import in_tf32
from flsimulation.training.scores import RETURNED, measured, returned_loss
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
    states: Mapping[tuple[str, str], Tensor] = MappingProxyType({})
    """Of metric objects, by name of the score and of the state; only of many clients at once."""


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
    tf32 : bool, optional
        As `in_tf32`.

    Raises
    ------
    NotStackable
        If the evaluation is more than its step.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        *,
        gpu: bool = False,
        clock: Clock = SYSTEM,
        tf32: bool | None = None,
    ) -> None:
        own = [step for step in _STEPS if defines(step, module)]
        if not own:
            raise NotStackable("the module has no validation_step")
        stage = own[0].removesuffix("_step")
        self._end = f"on_{stage}_epoch_end"
        own_methods = overridden(type(module))
        self.has_end = self._end in own_methods
        """Whether the module does something when all batches were seen."""
        for name in sorted(own_methods - {self._end}):
            if name.startswith(f"on_{stage}_") or name in _AROUND:
                raise NotStackable(f"the module has a {name} of its own")
        self._step, self._log = own[0], Log(training=False)
        self.tf32 = tf32
        """Whether to evaluate inside `in_tf32`."""
        self.device, self.clock = torch.device("cuda" if gpu else "cpu"), clock
        self._module = watched(copy.deepcopy(module).to(self.device).eval(), self._log)
        self._tensors: dict[int, Any] = {
            id(tensor): tensor for tensor in self._module.state_dict(keep_vars=True).values()
        }
        self._takes_number = len(inspect.signature(getattr(module, self._step)).parameters) > 1
        self._used, self._state, self._new = self._module, State(), list[Any]()
        self._metrics = MetricObjects(self._module)
        self._round = 0

    def evaluate(
        self,
        state: State,
        batches: Batches,
        *,
        seed: int = 0,
        expires: float | None = None,
        round: int = 0,
    ) -> Measured:
        """What `LocalTrainer.evaluate` returns and raises for the same arguments.

        The model is loaded again only if ``state`` is not that of the last call.

        Raises
        ------
        NotStackable
            If the step needs what only a Trainer has.
        """
        self.load(state, round)
        steps = list[EvaluationStep]()
        with seeds.global_streams(seed), torch.inference_mode(), in_tf32(self.tf32):
            for number, batch in enumerate(batches):
                if expires is not None and self.clock.time() > expires:
                    raise too_late()
                with _explained(self._step):
                    step = self.step(moved(batch, self.device), number)
                steps.append(step._replace(values=[float(value) for value in step.values]))
            found = self.scores(steps)
            if self.has_end and steps:
                with _explained(self._end):
                    found |= self._ended()
            return measured(self._metrics.measured(found))

    def load(self, state: State, round: int = 0) -> None:
        """Have the module as new, with this model: a step may have changed it."""
        if state is self._state and round == self._round and self.is_new:
            self._metrics.clear()
            return
        has_changed = not self.is_new
        self._module.load_state_dict(state)
        if has_changed:
            self._used = copy.deepcopy(self._module, dict(self._tensors))
            self._log.metrics = self._metrics = MetricObjects(self._used)
        else:
            self._metrics.clear()
        self._used.federated_round = self._round = round  # type: ignore[assignment]
        self._state, self._new = state, self._attributes()

    @property
    def is_new(self) -> bool:
        """Whether the steps that were taken since the model was loaded have changed nothing.

        Metrics do not count that ``reset`` makes as new.
        """
        return self._attributes() == self._new

    def first_step(self, batch: Any, like: Tensor) -> EvaluationStep:
        """The step that begins an evaluation, also inside vmap, with the metrics' states.

        Parameters
        ----------
        batch : Any
            A batch, which is on the device.
        like : Tensor
            An input of the batch.
        """
        self._metrics.begin(like)
        return self.step(batch)._replace(states=self._metrics.states())

    def restored(self, step: EvaluationStep, states: Mapping[str, Arrays]) -> Measured:
        """What `evaluate` returns for a client that took this step, and whose metrics have these
        states. Raises `ClientError`.
        """
        return measured(self._metrics.restored(self.scores([step]), states))

    def _attributes(self) -> list[Any]:
        return attributes(self._used, strict=True, without=self._metrics.resettable)

    def step(self, batch: Any, number: int = 0) -> EvaluationStep:
        """Take the module's step for a batch, which is on the device."""
        self._log.how.clear()
        self._log.values.clear()
        output = getattr(self._used, self._step)(batch, *([number] if self._takes_number else []))
        how = [dataclasses.replace(logged, batch_size=None) for logged in self._log.how]
        sizes = [logged.batch_size or examples_of(batch) for logged in self._log.how]
        values = list(self._log.values)
        if (loss := returned_loss(output)) is not None:
            how.append(
                Logged(RETURNED, on_step=False, on_epoch=True, reduction="mean", batch_size=None)
            )
            sizes.append(examples_of(batch))
            values.append(loss)
        return EvaluationStep(how, sizes, values)

    def _ended(self) -> dict[str, float]:
        """Call the module's hook at the end of an epoch; the numbers that it logged."""
        self._log.how.clear()
        self._log.values.clear()
        self._log.ended = True
        try:
            getattr(self._used, self._end)()
        finally:
            self._log.ended = False
        values = [float(value) for value in self._log.values]
        return self.scores([EvaluationStep(self._log.how, [1] * len(values), values)])

    def scores(self, steps: Sequence[EvaluationStep]) -> dict[str, float]:
        """Numbers over all batches of a client, as they are logged. Raises `NotStackable`."""
        how = steps[0].how if steps else []
        if any(step.how != how for step in steps):
            raise NotStackable(f"{self._step} logs something else for other batches")
        if not how:
            return {}
        values, sizes = (
            np.array(kind) for kind in ([s.values for s in steps], [s.sizes for s in steps])
        )
        return reduced(how, values, sizes, training=False)


@contextlib.contextmanager
def _explained(method: str) -> Iterator[None]:
    """Raise what a module's method raises as `NotStackable`, or as its client's error."""
    try:
        yield
    except (CannotTake, NotStackable) as reason:
        raise NotStackable(f"{method} {reason}") from None
    except ClientError:
        raise
    except Exception as error:
        raise ClientError("error", describe_error(error)) from error
