"""What the apps of a process need: the experiment, its data, its model and the engine."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl

from flsimulation import seeds
from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.federated import FederatedData
from flsimulation.data.leaves import Leaves
from flsimulation.errors import ClientError
from flsimulation.experiment import Experiment
from flsimulation.models import build_model
from flsimulation.training import Batches, Engine, Job, State, engine_for, processes_for
from flsimulation.training.preparation import PLAIN, Preparation, preparation

_EVALUATION_BATCH = 1000  # examples; bounds the memory of a forward pass, changes no score
_TEST = -1  # stands for the partition of the test set


@dataclass(frozen=True, eq=False)
class Workspace:
    """The experiment, its data, model and engine, for all clients and the server of this process."""

    experiment: Experiment
    data: FederatedData
    module: pl.LightningModule
    """The model before the first round; never changed."""
    engine: Engine
    clock: Clock = SYSTEM
    """What time it is for all of them."""
    prepared: Preparation = PLAIN
    """How batches are prepared for the model."""

    @classmethod
    def load(
        cls,
        experiment: Experiment,
        *,
        clients: int | None = None,
        processes: int | None = None,
        clock: Clock = SYSTEM,
    ) -> Workspace:
        """Load and partition the data, build the model and choose the engine.

        Parameters
        ----------
        experiment : Experiment
            What to load.
        clients : int, optional
            Most clients that train or evaluate in this process at a time, by default all of the
            experiment's: 1 for a client's process, 0 for a process with only the server.
        processes : int, optional
            Most processes for clients that train one by one; by default one per core.
        clock : Clock
            The clock of the engine and the exchange.

        Raises
        ------
        InputError
            If the experiment's data, model or device is not available.
        """
        data = FederatedData.load(experiment)
        module = build_model(experiment.model, data.dataset, experiment.seed)
        prepared = preparation(experiment, data.dataset)
        engine = _chosen(experiment, data, module, prepared, clients, processes, clock)
        return cls(experiment, data, module, engine, clock, prepared)

    def under(self, experiment: Experiment) -> Workspace:
        """The same data and model with the engine that another experiment chooses."""
        engine = _chosen(experiment, self.data, self.module, self.prepared, clock=self.clock)
        return dataclasses.replace(self, experiment=experiment, engine=engine)

    @property
    def can_evaluate_clients(self) -> bool:
        """Whether clients have a held-out part and the module can evaluate it."""
        return self.data.validation_fraction > 0 and self.engine.can_evaluate

    def initial_state(self) -> State:
        """The global model before the first round; a copy, independent of the module."""
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def train_job(self, partition: int, round: int) -> Job:
        """A job on a client's training part, shuffled differently in every epoch and round."""
        spec = self.experiment
        return Job(
            partition,
            self.train_batches(partition, round),
            functools.partial(seeds.integer, spec.seed, "fit", round, partition),
            self.validation_batches(partition) if spec.train.validate_ else None,
            round,
        )

    def evaluation_job(self, partition: int, round: int) -> Job:
        """A job on a client's held-out part."""
        seed = functools.partial(seeds.integer, self.experiment.seed, "evaluate", round, partition)
        return Job(partition, self.validation_batches(partition), seed, round=round)

    def train_batches(self, partition: int, round: int) -> Batches:
        """Batches of the client's training part."""
        spec, dataset = self.experiment, self.data.dataset
        stream = functools.partial(seeds.rng, spec.seed, "batches", round, partition)
        indices = self.data.train_indices(partition)
        return Batches(
            dataset.x_train,
            dataset.y_train,
            indices,
            spec.train.batch_size,
            stream,
            functools.partial(seeds.integer, spec.seed, "transform", round, partition),
            prepared=self.prepared,
        )

    def validation_batches(self, partition: int) -> Batches:
        """Batches of the client's held-out part."""
        dataset, indices = self.data.dataset, self.data.validation_indices(partition)
        return self._evaluated(dataset.x_train, dataset.y_train, indices)

    def test_scores(self, state: State, round: int = 0) -> dict[str, float]:
        """Scores of the model after a round on the test set. Raises `ClientError`."""
        dataset = self.data.dataset
        batches = self._evaluated(dataset.x_test, dataset.y_test, dataset.test_indices)
        seed = functools.partial(seeds.integer, self.experiment.seed, "test")
        job = Job(_TEST, batches, seed, round=round)
        (scored,) = self.engine.evaluate(state, [job])
        result = scored[_TEST]
        if isinstance(result, ClientError):
            raise result
        return result

    def _evaluated(self, x: Leaves, y: Leaves, indices: np.ndarray) -> Batches:
        return Batches(x, y, indices, _EVALUATION_BATCH, prepared=self.prepared)


def _chosen(
    experiment: Experiment,
    data: FederatedData,
    module: pl.LightningModule,
    prepared: Preparation,
    clients: int | None = None,
    processes: int | None = None,
    clock: Clock = SYSTEM,
) -> Engine:
    spec, dataset = experiment.train, data.dataset
    if processes is None:
        processes = processes_for(spec, experiment.cohort_size if clients is None else clients)
    if clients is None:  # also a cohort of one: many clients may evaluate
        clients = max(2, experiment.data.clients)
    x, y = dataset.x_train, dataset.y_train
    return engine_for(module, spec, x, y, clients, processes, clock, prepared=prepared)
