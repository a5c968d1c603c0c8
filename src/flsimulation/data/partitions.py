"""Who holds what: the pool of examples, divided among the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flsimulation import seeds
from flsimulation.data.dataset import Dataset
from flsimulation.data.task import is_whole
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_BY_LABEL = ("dirichlet", "pathological", "shards")


def partition_examples(dataset: Dataset, spec: Data, seed: int) -> Sequence[np.ndarray]:
    """Divide the training set among the clients.

    The pool, all examples or ``data.examples-per-client`` for each client on average, is drawn
    and shuffled first; then Flower Datasets' partitioner of that name cuts it.

    Returns
    -------
    sequence of np.ndarray
        For each client its indices into the training set, int64, pairwise disjoint. Together
        they are the pool, except that ``shards`` drops what is left of equal shards and
        ``pathological`` the classes that no client holds. Those of ``drawn`` are drawn when they
        are requested, and may overlap.

    Raises
    ------
    DataError
        If the data set cannot be divided so, or a client would hold fewer examples than
        ``data.min-examples``.
    """
    if dataset.agreed is not None:
        return [np.flatnonzero(dataset.owners == site) for site in spec.sites]
    if spec.partition == "drawn":
        return _drawn(dataset, spec, seed)
    pool = _pool(dataset, spec, seed)
    if spec.partition == "iid":
        parts = np.array_split(pool, spec.clients)  # as IidPartitioner, without its 3 s of imports
    else:
        keys = _keys(dataset, spec, pool)
        from flsimulation.data.flower import partition_rows

        parts = [pool[rows] for rows in partition_rows(keys, dataset.name, spec, seed)]
    _check_sizes(parts, spec)
    return parts


@dataclass(frozen=True)
class DrawnPartitions(Sequence[np.ndarray]):
    """Clients that each draw their examples from the whole training set, when requested.

    Parameters
    ----------
    clients : int
        How many; they take no memory.
    size : int
        Examples of each.
    examples : int
        Examples of the training set.
    seed : int
        Of the draws; each client has a stream of its own.
    """

    clients: int
    size: int
    examples: int
    seed: int

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, partition: Any) -> Any:
        if not 0 <= partition < self.clients:
            raise IndexError(f"client {partition} of {self.clients}")
        stream = seeds.rng(self.seed, "draw", partition=int(partition))
        return stream.choice(self.examples, self.size, replace=False, shuffle=False)


def _drawn(dataset: Dataset, spec: Data, seed: int) -> DrawnPartitions:
    size, examples = spec.examples_per_client, len(dataset.y_train)
    if not spec.min_examples <= size <= examples:
        raise DataError(
            f"data.partition 'drawn' needs data.examples-per-client between data.min-examples "
            f"({spec.min_examples}) and the {examples} training examples of {dataset.name}, got "
            f"{size}; set it to what each client shall draw"
        )
    return DrawnPartitions(spec.clients, size, examples, seed)


def _pool(dataset: Dataset, spec: Data, seed: int) -> np.ndarray:
    """Draw the indices to divide, in random order."""
    examples = len(dataset.y_train)
    size = spec.clients * spec.examples_per_client or examples
    if size > examples:
        raise DataError(
            f"data.clients x data.examples-per-client = {spec.clients} x "
            f"{spec.examples_per_client} = {size}, but {dataset.name} has {examples} training "
            f"examples; lower one of them"
        )
    if spec.clients * spec.min_examples > size:
        raise DataError(
            f"data.clients x data.min-examples = {spec.clients} x {spec.min_examples} = "
            f"{spec.clients * spec.min_examples}, but there are {size} training examples of "
            f"{dataset.name} to divide; {_remedy(spec)}"
        )
    pool = np.arange(examples)
    if size < examples:
        pool = seeds.rng(seed, "pool").choice(examples, size, replace=False)
    return seeds.rng(seed, "shuffle").permutation(pool).astype(np.int64, copy=False)


def _keys(dataset: Dataset, spec: Data, pool: np.ndarray) -> np.ndarray:
    """Find what the scheme goes by, label or owner, of each example of the pool, as numbers."""
    if spec.partition == "natural":
        return _owners(dataset, spec, pool)
    if spec.partition not in _BY_LABEL:
        return np.zeros(len(pool), np.int64)
    if (labels := dataset.labels) is None:
        kind = str(dataset.y_train.dtype).removeprefix("torch.")
        task = "" if dataset.task == "auto" else f" (data.task {dataset.task!r})"
        whole = dataset.y_train.ndim == 1 and is_whole(dataset.y_train.numpy())
        remedy = ", or set data.task = 'classification' if the targets are classes" if whole else ""
        raise DataError(
            f"data.partition {spec.partition!r} needs class labels, but {dataset.name} has "
            f"{kind} targets of shape {list(dataset.y_train.shape)}{task}; use 'iid', 'linear', "
            f"'square', 'exponential' or 'natural'{remedy}"
        )
    return np.unique(labels[pool], return_inverse=True)[1]


def _owners(dataset: Dataset, spec: Data, pool: np.ndarray) -> np.ndarray:
    if dataset.owners is None:
        raise DataError(
            f"data.partition 'natural' needs a column that names each example's client, but "
            f"{dataset.name} has no column {spec.partition_column!r}; set data.partition-column"
        )
    owners, numbers = np.unique(dataset.owners, return_inverse=True)
    if len(owners) != spec.clients:
        raise DataError(
            f"data.partition 'natural' finds {len(owners)} clients in {dataset.name}, but "
            f"data.clients is {spec.clients}; set data.clients = {len(owners)}"
        )
    drawn: np.ndarray = numbers[pool]
    if (kept := len(np.unique(drawn))) < len(owners):
        raise DataError(
            f"data.examples-per-client = {spec.examples_per_client} leaves only {kept} of the "
            f"{len(owners)} clients of {dataset.name} with any example; raise it, or set it to 0"
        )
    return drawn


def _check_sizes(parts: list[np.ndarray], spec: Data) -> None:
    sizes = [len(part) for part in parts]
    least = int(np.argmin(sizes))
    if sizes[least] < spec.min_examples:
        raise DataError(
            f"data.partition {spec.partition!r} gives client {least} only {sizes[least]} of "
            f"{sum(sizes)} examples, but data.min-examples is {spec.min_examples} and "
            f"data.clients {spec.clients}; {_remedy(spec)}"
        )


def _remedy(spec: Data) -> str:
    more = ", or raise data.examples-per-client" if spec.examples_per_client else ""
    return f"lower data.clients or data.min-examples{more}"
