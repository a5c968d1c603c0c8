"""Flower Datasets' partitioners, used for row numbers only.

Imported only where a scheme needs it: ``flwr_datasets`` takes seconds to import.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

# Partitioning must not report to anybody; the variable is read at import.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import datasets
from flwr_datasets import partitioner as flower

from flsimulation import seeds
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_LOG = logging.getLogger(__name__)
_SETTINGS = {
    "dirichlet": ("alpha", "clients", "min-examples"),
    "pathological": ("clients", "classes-per-client"),
    "shards": ("clients", "shards-per-client"),
}


class Rows(datasets.Dataset):  # type: ignore[misc]  # datasets has no type hints
    """The column that a partitioner divides by; selecting rows returns their numbers.

    A partition is ``dataset.select(rows)``. As a real table that takes 3 ms, three seconds for
    1000 clients, of which only the row numbers are wanted.
    """

    @classmethod
    def of(cls, keys: np.ndarray) -> Rows:
        """Rows with these keys, in Arrow's format, which partitioners read 100 times faster."""
        rows: Rows = cls.from_dict({"key": keys}).with_format("arrow")
        return rows

    def select(self, indices: Iterable[int], **_: Any) -> np.ndarray:
        """Give the numbers themselves."""
        return np.fromiter(indices, np.int64)

    def sort(self, *_: Any, **__: Any) -> Rows:
        """Do nothing: `partition_rows` sorts where a scheme needs it."""
        return self


def partition_rows(keys: np.ndarray, name: str, spec: Data, seed: int) -> list[np.ndarray]:
    """Divide the rows 0, 1, ... as ``data.partition`` says.

    Parameters
    ----------
    keys : np.ndarray
        For each row the number of its class, or of its owner for ``natural``.
    name : str
        The data set's name, for errors.

    Raises
    ------
    DataError
        If Flower's partitioner refuses.
    """
    order = np.argsort(keys, kind="stable") if spec.partition == "shards" else np.arange(len(keys))
    partitioner, by = _partitioner(keys, name, spec, seeds.integer(seed, "partition") % 2**32)
    partitioner.dataset = Rows.of(by[order])
    try:
        with _quiet():
            parts = [order[partitioner.load_partition(client)] for client in range(spec.clients)]
    except (ValueError, ZeroDivisionError):
        raise _refusal(len(keys), name, spec) from None
    if spec.partition == "pathological":
        _tell_unused(keys, parts, name, spec)
    return parts


def _partitioner(
    keys: np.ndarray, name: str, spec: Data, seed: int
) -> tuple[flower.Partitioner, np.ndarray]:
    match spec.partition:
        case "dirichlet":
            return flower.DirichletPartitioner(
                spec.clients, "key", spec.alpha, spec.min_examples, seed=seed
            ), keys
        case "pathological":
            return _pathological(keys, name, spec, seed)
        case "shards":
            return flower.ShardPartitioner(
                spec.clients, "key", spec.shards_per_client, seed=seed
            ), keys
        case "natural":
            return flower.NaturalIdPartitioner("key"), keys
    by_size = {
        "linear": flower.LinearPartitioner,
        "square": flower.SquarePartitioner,
        "exponential": flower.ExponentialPartitioner,
    }
    return by_size[spec.partition](spec.clients), keys


def _pathological(
    keys: np.ndarray, name: str, spec: Data, seed: int
) -> tuple[flower.Partitioner, np.ndarray]:
    """Flower's mode of assigning classes that leaves the fewest without a client."""
    classes, each = int(keys.max()) + 1, spec.classes_per_client
    if each > classes:
        raise DataError(
            f"data.classes-per-client must be at most {classes}, the classes in {name}, got {each}"
        )
    if spec.clients * each <= classes:  # clients need not share: blocks of classes, one for each
        keys, each, mode = keys // each, 1, "deterministic"
    elif spec.clients < classes <= spec.clients + each - 1 or each == classes:
        mode = "deterministic"  # windows of classes, one class further for each client
    else:
        mode = "first-deterministic"  # the paper's own; all classes if there are as many clients
    return flower.PathologicalPartitioner(spec.clients, "key", each, mode, seed=seed), keys


def _tell_unused(keys: np.ndarray, parts: list[np.ndarray], name: str, spec: Data) -> None:
    if unused := len(np.unique(keys)) - len(np.unique(keys[np.concatenate(parts)])):
        _LOG.warning(
            "data.clients = %d with data.classes-per-client = %d leaves %d classes of %s unused",
            spec.clients, spec.classes_per_client, unused, name,
        )  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warning of Flower's retries, no progress bar: what matters becomes an error here."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _refusal(rows: int, name: str, spec: Data) -> DataError:
    if spec.partition not in _SETTINGS:
        return DataError(
            f"data.partition {spec.partition!r} gives client 0, the smallest, none of the {rows} "
            f"examples of {name} with data.clients = {spec.clients}; lower data.clients"
        )
    keys = _SETTINGS[spec.partition]
    settings = ", ".join(f"data.{k} = {getattr(spec, k.replace('-', '_'))}" for k in keys)
    lower = " or ".join(f"data.{key}" for key in keys if key != "alpha")
    remedy = f"raise data.alpha, or lower {lower}" if "alpha" in keys else f"lower {lower}"
    return DataError(
        f"data.partition {spec.partition!r} cannot give each client enough of the {rows} examples "
        f"of {name} with {settings}; {remedy}"
    )
