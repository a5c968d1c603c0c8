"""``hf:OWNER/NAME``: data sets of the Hugging Face Hub, or of a local folder, by Flower Datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flsimulation.data.arrays import Examples, Inputs, assemble, refusal, split_rows
from flsimulation.data.dataset import Dataset
from flsimulation.data.features import TEXT, check_label, check_numeric, leaf, pictures_of
from flsimulation.data.images import floats_if_deep
from flsimulation.data.pictures import stack_pictures
from flsimulation.data.pixels import prepare_images
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
        (train, test), notes = _both(tables, spec)
    except DataError:
        raise
    except Exception as error:
        raise _unavailable(spec, error) from error
    classes = getattr(tables[0].features[spec.label_column], "names", ())
    about = About(f"column {spec.label_column!r}")
    origin = Inputs(f"column {spec.image_column!r}", notes=notes)
    return assemble(spec, seed, train, test, classes, about, origin)


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


def _both(tables: Sequence[Any], spec: Data) -> tuple[list[Examples], tuple[str, ...]]:
    """Training and test set, whose images have one form, and lines for people."""
    for table in tables:
        if spec.label_column not in table.features:
            raise unknown_column(
                "data.label-column", spec.label_column, spec.dataset, table.features
            )
        check_label(spec.label_column, table.features[spec.label_column], spec)
        check_owner_column(spec, spec.dataset, table.features)
    inputs, notes = _inputs(tables, spec)
    examples = [_examples(x, table, spec) for x, table in zip(inputs, tables, strict=True)]
    return examples, notes


def _examples(x: np.ndarray, table: Any, spec: Data) -> Examples:
    owned = spec.partition_column in table.features
    return Examples(
        x,
        _column(table, spec.label_column, spec),
        _column(table, spec.partition_column, spec) if owned else None,
    )


def _inputs(tables: Sequence[Any], spec: Data) -> tuple[list[np.ndarray], tuple[str, ...]]:
    features = tables[0].features
    if spec.image_column not in features:
        return [_scalars(table, spec) for table in tables], ()
    if type(features[spec.image_column]).__name__ == "Image":
        pictures = [pictures_of(table, spec) for table in tables]
        x, line = floats_if_deep(*stack_pictures([p for part in pictures for p in part], spec))
        size = len(pictures[0])
        return [x[:size], x[size:]], (line,)
    check_numeric(spec.image_column, features[spec.image_column], spec)
    columns = [prepare_images(_column(table, spec.image_column, spec)) for table in tables]
    return [x for x, _ in columns], columns[0][1]


def _scalars(table: Any, spec: Data) -> np.ndarray:
    """All columns but label and client, side by side, if they are plain numbers."""
    others = [c for c in table.features if c not in (spec.label_column, spec.partition_column)]
    if others and all(type(table.features[c]).__name__ == "Value" for c in others):
        for name in others:
            check_numeric(name, table.features[name], spec)
    columns = [_column(table, name, spec) for name in others]
    if not columns or any(c.ndim != 1 or c.dtype.kind not in "buif" for c in columns):
        raise unknown_column("data.image-column", spec.image_column, spec.dataset, table.features)
    return np.stack(columns, axis=1).astype(np.float64)  # a table's integers are no tokens


def _column(table: Any, name: str, spec: Data) -> np.ndarray:
    """Read a column in the type in which it is stored."""
    if empty := table.data.column(name).null_count:
        raise refusal(spec, f"column {name!r} has {empty} empty cells; fill them")
    array = np.asarray(table.select_columns([name]).with_format("numpy")[:][name])
    if array.dtype.kind == "O" and leaf(table.features[name]) not in TEXT:
        raise refusal(
            spec,
            f"column {name!r} has rows of several lengths; make them one length, for example with "
            f"zeros at the end, by a function of your own (path/to/file.py:function)",
        )
    kept = {"uint8": np.uint8, "uint16": np.uint16, "string": np.str_, "large_string": np.str_}
    wanted = kept.get(leaf(table.features[name]))  # NumPy's format widens and boxes them
    return array if wanted is None else array.astype(wanted)
