"""``hf:OWNER/NAME``: data sets of the Hugging Face Hub, or of a local folder, by Flower Datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flsimulation.data.arrays import Examples, assemble, refusal, split_rows
from flsimulation.data.dataset import Dataset
from flsimulation.data.images import stack_images
from flsimulation.data.tables import check_owner_column, unknown_column
from flsimulation.data.task import About
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_TEST = ("test", "validation", "valid")


def load_hub(spec: Data, seed: int) -> Dataset:
    """Load what the Hugging Face name or folder behind ``hf:`` stands for.

    ``data.args`` go to ``datasets.load_dataset`` (``subset``, ``revision``, ...). Where there is
    no split ``test`` or ``validation``, ``data.test-fraction`` of ``train`` is set aside.

    Raises
    ------
    DataError
        If it is not available, or lacks the columns that the experiment names.
    """
    try:
        tables = _tables(spec, seed)
        train, test = (_examples(table, spec) for table in tables)
    except DataError:
        raise
    except Exception as error:
        raise _unavailable(spec, error) from error
    classes = getattr(tables[0].features[spec.label_column], "names", ())
    about = About(f"column {spec.label_column!r}")
    return assemble(spec, seed, train, test, classes, about)


def _tables(spec: Data, seed: int) -> tuple[Any, Any]:
    """Training and test table (``datasets.Dataset``)."""
    # Reading data must not report to anybody; the variable is read at import.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from flwr_datasets import FederatedDataset

    name = spec.dataset.removeprefix("hf:")
    if name.startswith((".", "/", "~")):
        name = str(Path(name).expanduser())
        if not Path(name).is_dir():
            raise refusal(spec, "there is no such folder; correct the path")
    options: dict[str, Any] = {"preprocessor": lambda splits: _train_and_test(splits, spec, seed)}
    options |= spec.args
    data = FederatedDataset(dataset=name, partitioners={}, shuffle=False, **options)
    return data.load_split("train"), data.load_split("test")


def _unavailable(spec: Data, error: Exception) -> DataError:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, ConnectionError):
        remedy = (
            "connect to the network once (the data set is then kept in the cache), or use a local "
            "copy with hf:./FOLDER or file:PATH"
        )
    else:
        remedy = "check the name, and data.args (subset, revision) where the data set needs them"
    return refusal(spec, f"cannot be loaded: {text}; {remedy}")


def _train_and_test(splits: Any, spec: Data, seed: int) -> Any:
    """Name the splits ``train`` and ``test``, whatever the data set calls them."""
    names = list(splits)
    train = "train" if "train" in names else names[0]
    if train != "train" and len(names) > 1:
        raise refusal(spec, f"it has no split 'train', only {', '.join(names)}; use another")
    test = next((name for name in _TEST if name in names and name != train), None)
    table = splits[train]
    if test is not None:
        return type(splits)(train=table, test=splits[test])
    rows = split_rows(spec, seed, len(table))
    return type(splits)(train=table.select(rows[0]), test=table.select(rows[1]))


def _examples(table: Any, spec: Data) -> Examples:
    if spec.label_column not in table.features:
        raise unknown_column("data.label-column", spec.label_column, spec.dataset, table.features)
    check_owner_column(spec, spec.dataset, table.features)
    owned = spec.partition_column in table.features
    return Examples(
        _inputs(table, spec),
        _column(table, spec.label_column, spec),
        _column(table, spec.partition_column, spec) if owned else None,
    )


def _inputs(table: Any, spec: Data) -> np.ndarray:
    if spec.image_column not in table.features:
        return _scalars(table, spec)
    if type(table.features[spec.image_column]).__name__ == "Image":
        return stack_images(_images(table, spec), spec)
    return _column(table, spec.image_column, spec)


def _scalars(table: Any, spec: Data) -> np.ndarray:
    """All columns but label and client, side by side, if they are plain numbers."""
    others = [c for c in table.features if c not in (spec.label_column, spec.partition_column)]
    columns = [_column(table, name, spec) for name in others]
    if not columns or any(c.ndim != 1 or c.dtype.kind not in "buif" for c in columns):
        raise unknown_column("data.image-column", spec.image_column, spec.dataset, table.features)
    return np.stack(columns, axis=1).astype(np.float64)  # a table's integers are no tokens


def _images(table: Any, spec: Data) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(table.select_columns([spec.image_column])):
        if (image := row[spec.image_column]) is None:
            raise refusal(spec, f"image {number} is missing; remove its row")
        yield f"image {number}", image


def _column(table: Any, name: str, spec: Data) -> np.ndarray:
    """Read a column in the type in which it is stored."""
    if empty := table.data.column(name).null_count:
        raise refusal(spec, f"column {name!r} has {empty} empty cells; fill them")
    array = np.asarray(table.select_columns([name]).with_format("numpy")[:][name])
    kept = {"uint8": np.uint8, "string": np.str_, "large_string": np.str_}
    wanted = kept.get(_leaf(table.features[name]))  # NumPy's format widens and boxes them
    return array if wanted is None else array.astype(wanted)


def _leaf(feature: Any) -> str:
    """Type of the numbers in a column, however deep its lists are."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(getattr(feature, "dtype", ""))
