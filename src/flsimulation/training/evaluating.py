"""How engines evaluate clients: those of one size together, without a Trainer where that is the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pytorch_lightning as pl

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.leaves import Leaves
from flsimulation.errors import ClientError, describe_error
from flsimulation.host.warned import of_client
from flsimulation.training.batches import Batches
from flsimulation.training.direct import DirectEvaluator
from flsimulation.training.jobs import Job, Scored, State
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.measured import Measured
from flsimulation.training.precision import in_precision
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.evaluation import StackedEvaluator


class Evaluates(Protocol):
    """A `LocalTrainer` or a `DirectEvaluator`."""

    def evaluate(
        self,
        state: State,
        batches: Batches,
        *,
        seed: int = 0,
        expires: float | None = None,
        round: int = 0,
    ) -> Measured:
        """Scores of a model. Raises `ClientError`."""


class Evaluating:
    """Evaluates a module by its own step, many clients together, or with the Trainer.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    lightning : LocalTrainer
        Evaluates what needs a Trainer.
    x, y : Tensor or dict of Tensor
        Inputs and targets of the data set, [n, ...].
    clock : Clock
        The clock to use.
    prepared : Preparation
        How batches are prepared for the module.
    precision : str
        As ``train.precision``.
    tf32 : bool, optional
        As `in_tf32`.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        lightning: LocalTrainer,
        x: Leaves,
        y: Leaves,
        clock: Clock = SYSTEM,
        *,
        prepared: Preparation = PLAIN,
        precision: str = "32-true",
        tf32: bool | None = None,
    ) -> None:
        self._lightning = lightning
        self._direct: DirectEvaluator | None = None
        self._together: StackedEvaluator | None = None
        if precision != "32-true":
            module = in_precision(module, precision)
        try:
            self._direct = DirectEvaluator(module, gpu=lightning.uses_gpu, clock=clock, tf32=tf32)
        except NotStackable:
            return
        if not self._direct.has_end:
            self._together = StackedEvaluator(self._direct, x, y, prepared)

    def evaluate(
        self, model: State, jobs: Sequence[Job], expires: float | None = None
    ) -> Iterator[Scored]:
        """Score the model on each job's batches, those of one size together."""

        def alone(place: int) -> dict[str, float] | ClientError:
            return self._alone(model, jobs[place], expires)

        if len(jobs) < 2 or self._together is None:
            yield from ({job.partition: alone(place)} for place, job in enumerate(jobs))
            return
        parts = [job.batches for job in jobs]
        for found in self._together.evaluate(model, parts, alone, expires, round=jobs[0].round):
            yield {jobs[place].partition: scored for place, scored in found.items()}

    def _alone(
        self, model: State, job: Job, expires: float | None
    ) -> dict[str, float] | ClientError:
        if self._direct is not None:
            try:
                return evaluated_alone(self._direct, model, job, expires)
            except NotStackable:  # its step needs a Trainer after all
                self._direct = self._together = None
        return evaluated_alone(self._lightning, model, job, expires)


def evaluated_alone(
    by: Evaluates, model: State, job: Job, expires: float | None
) -> dict[str, float] | ClientError:
    """One client's scores, or why there are none. Raises `NotStackable`."""
    try:
        with of_client(job.partition):
            return by.evaluate(
                model, job.batches, seed=job.seed(), expires=expires, round=job.round
            )
    except NotStackable:
        raise
    except ClientError as error:
        return error
    except Exception as error:
        return ClientError("error", describe_error(error))
