"""What is audited: a run's final model, examples it was trained on, and others of the same data."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from flsimulation import seeds
from flsimulation.data.dataset import Dataset
from flsimulation.data.federated import FederatedData
from flsimulation.data.leaves import Leaves, leaves, one, refilled
from flsimulation.data.partitions import DrawnPartitions
from flsimulation.errors import InputError
from flsimulation.experiment import Experiment
from flsimulation.models import build_model
from flsimulation.rundir import RunRecord, look
from flsimulation.training import Batches, State
from flsimulation.training.preparation import Preparation, preparation

_BATCH = 250  # examples whose losses are computed in one call


@dataclass(frozen=True, eq=False)
class Pool:
    """Examples that are audited: the first ``members`` were trained on, the others were not."""

    x: Leaves
    """[n, ...]."""
    y: torch.Tensor
    """[n]."""
    members: int

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]."""
        return np.asarray(self.y.numpy())


@dataclass(frozen=True, eq=False)
class Subject:
    """A run to audit, with its data."""

    record: RunRecord
    experiment: Experiment
    data: FederatedData
    module: pl.LightningModule
    """The model before the first round; not changed."""
    state: State
    """The final global model."""
    prepared: Preparation
    trained: tuple[int, ...]
    """Clients that trained in any round."""
    pool: Pool

    @classmethod
    def load(cls, record: RunRecord, examples: int, seed: int) -> Subject:
        """Read a run's model and data, and draw the examples.

        Parameters
        ----------
        record : RunRecord
            The run.
        examples : int
            The most members, and the most others; there are as many of both.
        seed : int
            Of the draw.

        Raises
        ------
        InputError
            If the run has no final model, its data are not here, or its labels are not one class each.
        """
        experiment, state = record.experiment(), record.weights()
        _check_place(record, experiment)
        data = FederatedData.load(experiment)
        _check_data(record, data)
        trained = _trained(record, experiment.data.clients)
        pool = _pool(record, data, trained, examples, seed)
        module = build_model(experiment.model, data.dataset, experiment.seed)
        prepared = preparation(experiment, data.dataset)
        return cls(record, experiment, data, module, state, prepared, trained, pool)

    @property
    def initial(self) -> State:
        """The model before the first round."""
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    @property
    def sizes(self) -> list[int]:
        """Examples that each client trains on."""
        return [self.data.train_size(client) for client in range(self.experiment.data.clients)]

    def evaluated(self, x: Leaves, y: Leaves, indices: np.ndarray) -> Batches:
        """Batches of examples in the order of the indices, prepared as for an evaluation."""
        return Batches(x, y, indices, _BATCH, prepared=self.prepared)

    @property
    def all_batches(self) -> Batches:
        """Batches of the whole pool."""
        return self.evaluated(self.pool.x, self.pool.y, np.arange(len(self.pool)))

    def shuffled(self, indices: np.ndarray, seed: int, number: int) -> Batches:
        """Batches of some of the pool, as a client of the run trains on its own."""
        return Batches(
            self.pool.x,
            self.pool.y,
            indices,
            self.experiment.train.batch_size,
            functools.partial(seeds.rng, seed, "audit batches", 0, number),
            functools.partial(seeds.integer, seed, "audit transform", 0, number),
            prepared=self.prepared,
        )


def _check_place(record: RunRecord, experiment: Experiment) -> None:
    if experiment.data.of_sites and not experiment.runtime.is_simulation:
        raise InputError(
            f"{record.path}: its examples are at the sites of a network, and none is here; audit a run in "
            f"one process (runtime.kind = 'inprocess') where data.dataset {experiment.data.dataset!r} can be read"
        )


def _check_data(record: RunRecord, data: FederatedData) -> None:
    """Refuse other data than the run's, and labels that are not one class for each example."""
    dataset, digest = data.dataset, look(record.manifest, "data", "digest")
    if digest is not None and digest != dataset.digest:
        raise InputError(
            f"{record.path}: data.dataset {dataset.name!r} has changed since the run (its digest is "
            f"{dataset.digest[:12]}..., was {digest[:12]}...); restore the data, or repeat the run"
        )
    if dataset.labels is None or dataset.task != "classification":
        raise InputError(
            f"{record.path}: an audit compares losses of examples with one class each, but data.task is "
            f"{dataset.task!r}; audit a run with data.task = 'classification'"
        )


def _trained(record: RunRecord, clients: int) -> tuple[int, ...]:
    """Clients whose training succeeded in any round; all where the run directory does not list them."""
    until = record.rounds[-1]["round"] if record.rounds else 0
    found = {partition for partition, reason in record.trained(until) if reason is None}
    return tuple(sorted(p for p in found if p < clients)) or tuple(range(clients))


def _pool(
    record: RunRecord, data: FederatedData, trained: tuple[int, ...], examples: int, seed: int
) -> Pool:
    """As many members as others, drawn at random; others are held-out examples, and then test examples."""
    dataset, rng = data.dataset, seeds.rng(seed, "audit pool")
    order = rng.permutation(np.array(trained))
    members = _first(map(data.train_indices, order.tolist()), examples, rng)
    held = np.array([], np.int64)
    if not isinstance(data.partitions, DrawnPartitions):  # whose clients share examples
        every = rng.permutation(np.arange(len(data.partitions))).tolist()
        held = _first((_unseen(data, p, p in set(trained)) for p in every), examples, rng)
    tests = rng.permutation(dataset.test_indices)[: examples - len(held)]
    count = min(len(members), len(held) + len(tests))
    if count < 2:
        raise InputError(
            f"{record.path}: an audit needs examples that were not trained on, but there is no test set and "
            f"no held-out part; set data.validation-fraction (or data.test), and repeat the run"
        )
    tests = tests[: max(0, count - len(held))]
    seen = np.concatenate([members[:count], held[:count]])
    return Pool(*_joined(dataset, seen, tests), count)


def _first(parts: Iterator[np.ndarray], examples: int, rng: np.random.Generator) -> np.ndarray:
    """Some examples of the first clients that have together enough of them; each once."""
    found: list[np.ndarray] = []
    for part in parts:
        found.append(part)
        if sum(map(len, found)) >= 4 * examples:
            break
    joined = np.unique(np.concatenate([np.array([], np.int64), *found]))
    return rng.permutation(joined)[:examples]


def _unseen(data: FederatedData, partition: int, has_trained: bool) -> np.ndarray:
    """What a client never trained on."""
    held = data.validation_indices(partition)
    return held if has_trained else np.concatenate([held, data.train_indices(partition)])


def _joined(dataset: Dataset, seen: np.ndarray, tests: np.ndarray) -> tuple[Leaves, Any]:
    """Examples of the training set, and of the test set behind them."""
    first, second = torch.from_numpy(seen), torch.from_numpy(tests)
    both = (
        (one(dataset.x_train, first), one(dataset.x_test, second)),
        (one(dataset.y_train, first), one(dataset.y_test, second)),
    )
    x, y = (
        refilled(a, [torch.cat(pair) for pair in zip(leaves(a), leaves(b), strict=True)])
        for a, b in both
    )
    return x, y
