"""What the apps of a process need: the experiment, its data, its model and the engine."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch

from flsimulation import seeds
from flsimulation.client.causes import Causes, check_steps
from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.federated import FederatedData
from flsimulation.data.leaves import Leaves, first
from flsimulation.errors import ClientError
from flsimulation.events import EngineChoosing, Sink
from flsimulation.experiment import Experiment
from flsimulation.models import build_model, require_argument
from flsimulation.privacy.clients import ClientPrivacy
from flsimulation.privacy.examples import noisy_of
from flsimulation.training import Batches, Before, Engine, Job, State, engine_for, processes_for
from flsimulation.training.footprint import examples_within_budget
from flsimulation.training.own_engines import OwnEngines
from flsimulation.training.preparation import PLAIN, Preparation, preparation
from flsimulation.training.stacked.room import kept_on
from flsimulation.training.trainers import takes_gpu
from flsimulation.training.work import Tell, Work, silent

_MEASURED = 2  # examples on which an evaluation's memory is measured
_GPU_BATCH = 10  # times a CPU's batch of an evaluation
_TEST_SHARE = 8  # of a GPU's free memory for the test set: 1 / 8
_TEST = -1  # stands for the partition of the test set


@dataclass(frozen=True, eq=False)
class Workspace:
    """The experiment, its data, model and engine, for all clients and the server of this process."""

    experiment: Experiment
    data: FederatedData
    module: pl.LightningModule
    """The model before the first round; never changed."""
    engine: Engine
    evaluation_batch: int
    """Examples per batch of an evaluation; changes no score."""
    notices: tuple[str, ...] = ()
    """Lines for people: what trains, but most likely not as intended."""
    clock: Clock = SYSTEM
    """What time it is for all of them."""
    prepared: Preparation = PLAIN
    """How batches are prepared for the model."""
    choosing: float = 0.0
    """Seconds that the choice of the engine took."""

    @functools.cached_property
    def private(self) -> ClientPrivacy:
        """What clients do to their updates before they send them."""
        return ClientPrivacy(self.experiment)

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Examples that each client trains on."""
        return train_sizes(self.data)

    @classmethod
    def load(
        cls,
        experiment: Experiment,
        *,
        clients: int | None = None,
        processes: int | None = None,
        clock: Clock = SYSTEM,
        sinks: Iterable[Sink] = (),
        measures: bool = False,
        before: Before | None = None,
        data: FederatedData | None = None,
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
        sinks : iterable of callables
            Notified while the engine is chosen.
        measures : bool
            Whether steps of the engines may be measured: where other processes of the run choose
            too, they could differ.
        before : Before, optional
            The choice of the engine that was made for this run before.
        data : FederatedData, optional
            The data, if it was loaded before.

        Raises
        ------
        InputError
            If the experiment's data, model or device is not available, or if the model does not
            fit the data.
        """
        data = data or FederatedData.load(experiment)
        for name, own in experiment.train.sites.items():
            if own.learning_rate:
                key = f"train.sites.{name}.learning-rate"
                require_argument(experiment.model, "learning_rate", key)
        module = build_model(experiment.model, data.dataset, experiment.seed)
        prepared = preparation(experiment, data.dataset)
        notices = check_steps(experiment, data, module, prepared)
        began, sinks = clock.monotonic(), tuple(sinks)

        def tell(doing: str) -> None:
            for sink in sinks:
                sink(EngineChoosing(doing, clock.monotonic() - began))

        engine = _chosen(
            *(experiment, data, module, prepared, clients, processes, clock, tell, measures, before)
        )
        choosing = clock.monotonic() - began
        batch = _fitting(experiment, data, module, prepared)
        return cls(experiment, data, module, engine, batch, notices, clock, prepared, choosing)

    def under(self, experiment: Experiment) -> Workspace:
        """The same data and model with the engine that another experiment chooses."""
        engine = _chosen(experiment, self.data, self.module, self.prepared, clock=self.clock)
        return dataclasses.replace(self, experiment=experiment, engine=engine)

    def module_of(self, partition: int) -> pl.LightningModule:
        """The model as a client trains it: with its site's own learning rate, if it has one."""
        own = self.experiment.of_client(partition)
        if own.model == self.experiment.model:
            return self.module
        return build_model(own.model, self.data.dataset, own.seed)

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
            self.private.noise(partition, round),
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
            spec.of_client(partition).train.batch_size,
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
        x, y = self._test_set
        batches = self._evaluated(x, y, self.data.dataset.test_indices)
        seed = functools.partial(seeds.integer, self.experiment.seed, "test")
        job = Job(_TEST, batches, seed, round=round)
        (scored,) = self.engine.evaluate(state, [job])
        result = scored[_TEST]
        if isinstance(result, ClientError):
            raise Causes(self, state, 0).of_evaluation(None, result)
        return result

    @functools.cached_property
    def _test_set(self) -> tuple[Leaves, Leaves]:
        """Inputs and targets of the test set; where clients train on a GPU, there, if it has room."""
        dataset = self.data.dataset
        moves = takes_gpu(self.experiment.train) and self.prepared.evaluation is None
        device = torch.device("cuda" if moves else "cpu")  # a transform works on the CPU
        return kept_on(device, _TEST_SHARE, dataset.x_test, dataset.y_test)

    def _evaluated(self, x: Leaves, y: Leaves, indices: np.ndarray) -> Batches:
        return Batches(x, y, indices, self.evaluation_batch, prepared=self.prepared)


def _fitting(
    experiment: Experiment,
    data: FederatedData,
    module: pl.LightningModule,
    prepared: Preparation,
) -> int:
    """Examples per batch of an evaluation: the experiment's, else what fits in memory."""
    if experiment.evaluate.batch_size:
        return experiment.evaluate.batch_size
    dataset = data.dataset
    x, y = dataset.x_train, dataset.y_train
    if dataset.has_test:
        x, y = dataset.x_test, dataset.y_test
    few = np.arange(min(_MEASURED, len(first(y))), dtype=np.int64)
    otherwise = experiment.train.batch_size
    try:
        (batch,) = Batches(x, y, few, _MEASURED, prepared=prepared)
    except ClientError:  # a transform refuses these few
        return otherwise
    gpu = takes_gpu(experiment.train)
    return examples_within_budget(module, batch, otherwise, times=_GPU_BATCH if gpu else 1)


def _chosen(
    experiment: Experiment,
    data: FederatedData,
    module: pl.LightningModule,
    prepared: Preparation,
    clients: int | None = None,
    processes: int | None = None,
    clock: Clock = SYSTEM,
    tell: Tell = silent,
    measures: bool = False,
    before: Before | None = None,
) -> Engine:
    spec, dataset = experiment.train, data.dataset
    own = _own_engines(experiment, data, module, prepared, processes, clock) if clients != 0 else {}
    if processes is None:
        processes = processes_for(spec, experiment.cohort_size if clients is None else clients)
    if clients is None:  # also a cohort of one: many clients may evaluate
        clients = max(2, experiment.data.clients)
    x, y = dataset.x_train, dataset.y_train
    work = work_of(experiment, data)
    if measures:  # elsewhere other processes of the run choose too, which may have other cores
        work = work._replace(processes=processes)
    usual = engine_for(
        *(module, spec, x, y, clients, processes, clock),
        prepared=prepared,
        work=work,
        tell=tell,
        measures=measures,
        before=before,
        noisy=noisy_of(experiment, train_sizes(data)),
    )
    return OwnEngines(usual, own) if own else usual


def _own_engines(
    experiment: Experiment,
    data: FederatedData,
    module: pl.LightningModule,
    prepared: Preparation,
    processes: int | None,
    clock: Clock,
) -> dict[int, Engine]:
    """The engines of the clients here that have train keys of their own, one for equal keys."""
    groups: dict[str, list[int]] = {}
    for partition in data.held if experiment.train.sites else ():
        keys = experiment.train.sites.get(experiment.data.sites[partition])
        if keys is not None and keys.given:
            groups.setdefault(keys.in_words(), []).append(partition)
    dataset, engines = data.dataset, dict[int, Engine]()
    noisy = noisy_of(experiment, train_sizes(data)) if groups else None
    for group in groups.values():
        own = experiment.of_client(group[0])
        is_same = own.model == experiment.model
        model = module if is_same else build_model(own.model, dataset, own.seed)
        count = processes or processes_for(own.train, len(group))
        given = own.train, dataset.x_train, dataset.y_train, len(group), count, clock
        engines |= dict.fromkeys(group, engine_for(model, *given, prepared=prepared, noisy=noisy))
    return engines


def train_sizes(data: FederatedData) -> list[int]:
    """Examples that each client trains on."""
    return [data.train_size(partition) for partition in range(len(data.partitions))]


def work_of(experiment: Experiment, data: FederatedData) -> Work:
    """What the clients do in all rounds, as if all had as many examples."""
    spec, rounds = experiment.train, experiment.strategy.rounds
    fits = rounds * experiment.cohort_size
    examples = data.train_examples * (1 - data.validation_fraction) / experiment.data.clients
    batches = max(1, math.ceil(round(examples, 6) / spec.batch_size))
    return Work(rounds, fits, fits * spec.epochs * batches, examples, gpu=takes_gpu(spec))
