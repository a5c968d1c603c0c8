"""What an app of this process works with, loaded once."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flwr.app import ArrayRecord

from flsimulation import seeds
from flsimulation.data.federated import FederatedData
from flsimulation.errors import ClientError, ModelError, describe_error
from flsimulation.experiment import Experiment
from flsimulation.messages.content import state_of_record
from flsimulation.models import build_model
from flsimulation.training import (
    Batches,
    CohortEvaluator,
    CohortTrainer,
    DirectEvaluator,
    LocalTrainer,
    NotStackable,
    Scored,
    State,
)

_EVALUATION_BATCH = 1000  # examples; bounds the memory of a forward pass, changes no score


class Stacking(NamedTuple):
    """Whether and why."""

    trainer: CohortTrainer | None
    """Trains many clients at once; None where clients train one by one."""
    why_not: str | None = None
    """The reason, where stacking was tried."""


@dataclass(frozen=True, eq=False)
class Workspace:
    """The experiment, its data and one trainer, for every client and the server of a process."""

    experiment: Experiment
    data: FederatedData
    trainer: LocalTrainer

    @classmethod
    def load(cls, experiment: Experiment) -> Workspace:
        """Read the data, divide it and build the model.

        Raises
        ------
        InputError
            If the experiment's data or model cannot be had.
        """
        data = FederatedData.load(experiment)
        module = build_model(experiment.model, data.dataset, experiment.seed)
        return cls(experiment, data, LocalTrainer(module, experiment.train))

    @functools.cached_property
    def stacking(self) -> Stacking:
        """Whether many clients train at once, decided when first asked, which takes a while.

        Raises
        ------
        ModelError
            If the experiment asks for it and the model does not allow it.
        """
        spec, dataset = self.experiment.train, self.data.dataset
        if spec.engine == "sequential":
            return Stacking(None)
        try:
            return Stacking(
                CohortTrainer(self.trainer.module, spec, dataset.x_train, dataset.y_train)
            )
        except Exception as error:  # whatever a user's module does when it is copied and traced
            known = isinstance(error, NotStackable)
            reason = str(error) if known else f"it cannot be traced ({describe_error(error)})"
            if spec.engine == "stacked":
                raise ModelError(
                    f"train.engine is 'stacked', but {reason}; use 'auto' or 'sequential'"
                ) from None
            return Stacking(None, reason)

    @property
    def cohort(self) -> CohortTrainer | None:
        """What trains many clients at once; None where they train one by one. See `stacking`."""
        return self.stacking.trainer

    @property
    def decided(self) -> Stacking:
        """`stacking` as far as this process has asked for it: a network's server never does."""
        decided: Stacking = vars(self).get("stacking", Stacking(None))
        return decided

    @property
    def can_evaluate_clients(self) -> bool:
        """Whether clients hold out a part and the module can evaluate it."""
        return self.data.validation_fraction > 0 and self.trainer.can_evaluate

    def initial_state(self) -> State:
        """The global model before the first round; a copy, whatever becomes of the module."""
        return {
            name: value.detach().clone() for name, value in self.trainer.module.state_dict().items()
        }

    def state_of(self, record: ArrayRecord) -> State:
        """A global model as a state_dict, not to be changed; that of the last record is kept.

        Many clients evaluate one model.
        """
        last: tuple[ArrayRecord, State] | None = vars(self).get("_last_state")
        if last is None or last[0] is not record:
            vars(self)["_last_state"] = last = record, state_of_record(record)
        return last[1]

    def train_batches(self, partition: int, round: int) -> Batches:
        """The client's training part, shuffled anew in every epoch of every round."""
        spec, dataset = self.experiment, self.data.dataset
        stream = functools.partial(seeds.rng, spec.seed, "batches", round, partition)
        indices = self.data.train_indices(partition)
        return Batches(dataset.x_train, dataset.y_train, indices, spec.train.batch_size, stream)

    def validation_batches(self, partition: int) -> Batches:
        """The client's held-out part."""
        dataset, indices = self.data.dataset, self.data.validation_indices(partition)
        return Batches(dataset.x_train, dataset.y_train, indices, _EVALUATION_BATCH)

    def test_scores(self, state: State) -> dict[str, float]:
        """Scores of a model on the test set."""
        dataset = self.data.dataset
        batches = Batches(dataset.x_test, dataset.y_test, dataset.test_indices, _EVALUATION_BATCH)
        return self.evaluate(state, batches, seed=seeds.integer(self.experiment.seed, "test"))

    def client_scores(
        self, state: State, partitions: Sequence[int], round: int, expires: float | None
    ) -> Iterator[dict[int, Scored]]:
        """Scores of a model on clients' held-out parts, by partition, as they come.

        Parameters
        ----------
        state : dict of Tensor
            The model; not changed.
        partitions : sequence of int
            The clients'.
        round : int
            The model's; seeds what the module draws.
        expires : float, optional
            Unix time in seconds after which to give up.
        """
        parts = [self.validation_batches(partition) for partition in partitions]

        def alone(place: int) -> Scored:
            seed = seeds.integer(self.experiment.seed, "evaluate", round, partitions[place])
            try:
                return self.evaluate(state, parts[place], seed=seed, expires=expires)
            except ClientError as error:
                return error
            except Exception as error:
                return ClientError("error", describe_error(error))

        if len(parts) > 1 and (together := self._cohort_evaluator) is not None:
            for found in together.evaluate(state, parts, alone, expires):
                yield {partitions[place]: scored for place, scored in found.items()}
        else:
            yield from ({partition: alone(place)} for place, partition in enumerate(partitions))

    def evaluate(
        self, state: State, batches: Batches, *, seed: int, expires: float | None = None
    ) -> dict[str, float]:
        """Scores of a model, by whichever way this workspace evaluates; see `LocalTrainer`."""
        while True:
            evaluator = self._evaluator
            try:
                return evaluator.evaluate(state, batches, seed=seed, expires=expires)
            except NotStackable:  # its step asks for a Trainer after all
                vars(self)["_evaluator"] = self.trainer

    @functools.cached_property
    def _evaluator(self) -> DirectEvaluator | LocalTrainer:
        """Evaluates without a Trainer where clients are trained stacked and the module allows it."""
        if self.decided.trainer is None:
            return self.trainer
        try:
            return DirectEvaluator(self.trainer.module, gpu=self.trainer.uses_gpu)
        except NotStackable:
            return self.trainer

    @functools.cached_property
    def _cohort_evaluator(self) -> CohortEvaluator | None:
        """Evaluates many clients at once; None where a Trainer evaluates them."""
        direct, dataset = self._evaluator, self.data.dataset
        if not isinstance(direct, DirectEvaluator):
            return None
        return CohortEvaluator(direct, dataset.x_train, dataset.y_train)
