"""The data of a federation: one data set in memory, each client a set of indices into it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from flsimulation import seeds
from flsimulation.data.dataset import Dataset
from flsimulation.data.partitions import DrawnPartitions, partition_examples
from flsimulation.data.sources import load_dataset
from flsimulation.errors import DataError
from flsimulation.experiment import Experiment

_KEPT_ORDERS = 10_000  # clients whose order of examples is kept from one round to the next


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A data set and who holds what of it."""

    dataset: Dataset
    partitions: Sequence[np.ndarray]
    """Indices into the training set, int64, one array a client."""
    validation_fraction: float
    """Share of its examples that each client holds out."""
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, experiment: Experiment) -> FederatedData:
        """Read the experiment's data set and partition it.

        Raises
        ------
        DataError
            If the data set cannot be read, or not partitioned as requested.
        """
        dataset = load_dataset(experiment.data, experiment.seed)
        return cls.divide(dataset, experiment)

    @classmethod
    def divide(cls, dataset: Dataset, experiment: Experiment) -> FederatedData:
        """Partition a data set that is already in memory."""
        spec, seed = experiment.data, experiment.seed
        return cls(dataset, partition_examples(dataset, spec, seed), spec.validation_fraction, seed)

    def train_indices(self, partition: int) -> np.ndarray:
        """Indices that the client trains on, in a fixed shuffled order."""
        return self._shuffled(partition)[self._held_out(partition) :]

    def validation_indices(self, partition: int) -> np.ndarray:
        """Indices that the client holds out; none if ``validation_fraction`` is 0."""
        return self._shuffled(partition)[: self._held_out(partition)]

    def train_size(self, partition: int) -> int:
        """Examples that the client trains on."""
        return self._size(partition) - self._held_out(partition)

    def validation_size(self, partition: int) -> int:
        """Examples that the client holds out."""
        return self._held_out(partition)

    def held_out_of(self, size: int) -> int:
        """Examples that a client with ``size`` of them holds out: the fraction, but at least one, and
        at least one left to train on.
        """
        if self.validation_fraction == 0:
            return 0
        return max(0, min(max(1, round(self.validation_fraction * size)), size - 1))

    @property
    def train_examples(self) -> int:
        """Examples that the clients hold together, held-out parts included."""
        if isinstance(self.partitions, DrawnPartitions):
            return self.partitions.clients * self.partitions.size
        if (agreed := self.dataset.agreed) is not None and agreed.sizes:
            return agreed.examples
        return sum(map(len, self.partitions))

    def histogram(self, clients: int | None = None) -> dict[str, list[int]]:
        """Examples of each class (or only how many) by partition, of the first clients or of all."""
        if (agreed := self.dataset.agreed) is not None:  # no more than what the sites share
            counts = (list(size.histogram or (size.examples,)) for size in agreed.sizes[:clients])
            return {str(i): own for i, own in enumerate(counts)}
        first = itertools.islice(self.partitions, clients)
        labels, classes = self.dataset.labels, len(self.dataset.classes)
        if labels is None:
            return {str(i): [len(part)] for i, part in enumerate(first)}
        return {
            str(i): np.bincount(labels[part], minlength=classes).tolist()
            for i, part in enumerate(first)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the natural clients 0, 1, ...; none where they are these numbers."""
        owners, agreed = self.dataset.owners, self.dataset.agreed
        if agreed is not None:
            return tuple(size.site for size in agreed.sizes)
        names = () if owners is None else tuple(str(name) for name in np.unique(owners))
        return () if names == tuple(map(str, range(len(names)))) else names

    @property
    def held(self) -> Sequence[int]:
        """Partitions whose examples are here; of sites on a network, the own one alone."""
        every = range(len(self.partitions))
        if self.dataset.agreed is None:
            return every
        return [i for i in every if len(self.partitions[i])]

    def targets(self, clients: int | None = None) -> dict[str, tuple[float, float, float]] | None:
        """Mean, least and greatest target by partition; None where the task is no regression.

        Of targets with several numbers, over all of them.
        """
        if self.dataset.task != "regression":
            return None
        first = itertools.islice(self.partitions, clients)
        parts = (self.dataset.y_train[torch.from_numpy(part)] for part in first)
        return {
            str(i): (part.double().mean().item(), part.min().item(), part.max().item())
            for i, part in enumerate(parts)
        }

    def _size(self, partition: int) -> int:
        drawn = self.partitions  # by whom a client's number is known without a draw
        if (agreed := self.dataset.agreed) is not None and agreed.sizes:
            return agreed.sizes[partition].examples
        return drawn.size if isinstance(drawn, DrawnPartitions) else len(drawn[partition])

    def _shuffled(self, partition: int) -> np.ndarray:
        if (known := self._orders.get(partition)) is not None:
            return known
        if len(self._orders) >= _KEPT_ORDERS:
            self._orders.clear()
        if not len(self.partitions[partition]):
            raise DataError(f"the examples of client {partition} are not here")
        stream = seeds.rng(self.seed, "validation", partition=partition)
        self._orders[partition] = order = stream.permutation(self.partitions[partition])
        return order

    def _held_out(self, partition: int) -> int:
        return self.held_out_of(self._size(partition))
