"""CSV files: numeric columns are the inputs, one column the label, one, where present, the client."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flsimulation.data.arrays import Examples, assemble, refusal
from flsimulation.data.dataset import Dataset
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data
from flsimulation.experiment.suggest import did_you_mean, nearest


def load_csv(train: Path, test: Path | None, spec: Data, seed: int) -> Dataset:
    """Load one CSV file, or of a training and a test file with the same columns.

    Raises
    ------
    DataError
        If the label column is missing, a column holds no numbers, or a cell is empty.
    """
    table = _read(train, spec)
    features = _features(table, train, spec)
    held_out = None if test is None else _examples(_read(test, spec), test, features, spec)
    return assemble(spec, seed, _examples(table, train, features, spec), held_out)


def check_owner_column(spec: Data, place: str, columns: Iterable[str]) -> None:
    """Refuse a natural partition by a column that is not there. Raises `DataError`."""
    columns = list(columns)
    if spec.partition == "natural" and spec.partition_column not in columns:
        raise unknown_column("data.partition-column", spec.partition_column, place, columns)


def unknown_column(key: str, column: str, place: str, columns: Iterable[str]) -> DataError:
    """Make the error that says which columns there are, and which one may be meant."""
    columns = list(columns)
    hint = did_you_mean(nearest(column, columns))
    return DataError(f"{key} {column!r} is no column of {place}: {', '.join(columns)}{hint}")


def _read(path: Path, spec: Data) -> Any:
    import pandas as pd  # type: ignore[import-untyped]

    try:
        return pd.read_csv(path, low_memory=False, skipinitialspace=True)
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        raise refusal(
            spec, f"{path.name} cannot be read as CSV: {text}; correct the file"
        ) from None


def _features(table: Any, path: Path, spec: Data) -> list[str]:
    if spec.label_column not in table.columns:
        raise unknown_column("data.label-column", spec.label_column, path.name, table.columns)
    check_owner_column(spec, path.name, table.columns)
    names = [c for c in table.columns if c not in (spec.label_column, spec.partition_column)]
    if not names:
        raise refusal(spec, f"{path.name} has no column beside data.label-column; add the inputs")
    return names


def _examples(table: Any, path: Path, features: list[str], spec: Data) -> Examples:
    for column in features:
        if column not in table.columns:
            raise refusal(spec, f"{path.name} lacks the training set's column {column!r}; add it")
    owned = spec.partition_column in table.columns
    used = [*features, spec.label_column, *([spec.partition_column] if owned else [])]
    _check_cells(table, path, features, used, spec)
    return Examples(
        table[features].to_numpy(np.float32),
        _values(table[spec.label_column]),
        _values(table[spec.partition_column]) if owned else None,
    )


def _check_cells(table: Any, path: Path, features: list[str], used: list[str], spec: Data) -> None:
    if spec.label_column not in table.columns:
        raise unknown_column("data.label-column", spec.label_column, path.name, table.columns)
    for column in used:
        if empty := int(table[column].isna().sum()):
            raise refusal(spec, f"{path.name} has {empty} empty cells in {column!r}; fill them")
    words = [column for column in features if table[column].to_numpy().dtype.kind not in "buif"]
    if words:
        raise refusal(
            spec, f"{path.name} has columns that are not numeric: {', '.join(words)}; drop them"
        )


def _values(column: Any) -> np.ndarray:
    """Numbers as they are, anything else as text."""
    values = np.asarray(column.to_numpy())
    return values if values.dtype.kind in "iuf" else values.astype(str)
