"""What an app of this process works with, loaded once."""

from __future__ import annotations

from dataclasses import dataclass

from flsimulation import seeds
from flsimulation.data.federated import FederatedData
from flsimulation.experiment import Experiment
from flsimulation.models import build_model
from flsimulation.training import Batches, LocalTrainer, State

_EVALUATION_BATCH = 1000  # examples; bounds the memory of a forward pass, changes no score


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

    @property
    def can_evaluate_clients(self) -> bool:
        """Whether clients hold out a part and the module can evaluate it."""
        return self.data.validation_fraction > 0 and self.trainer.can_evaluate

    def initial_state(self) -> State:
        """The global model before the first round; a copy, whatever becomes of the module."""
        return {
            name: value.detach().clone() for name, value in self.trainer.module.state_dict().items()
        }

    def train_batches(self, partition: int, round: int) -> Batches:
        """The client's training part, shuffled anew in every epoch of every round."""
        spec, dataset = self.experiment, self.data.dataset
        stream = seeds.rng(spec.seed, "batches", round, partition)
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
        return self.trainer.evaluate(
            state, batches, seed=seeds.integer(self.experiment.seed, "test")
        )
