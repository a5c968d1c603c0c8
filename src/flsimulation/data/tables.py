"""Tables in files: CSV and its relatives, and Parquet. Inputs are numbers and categories."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flsimulation.data import columns as cells
from flsimulation.data.arrays import Examples, Inputs, assemble
from flsimulation.data.dataset import Column, Dataset
from flsimulation.data.reading import Table, is_numeric, read_table, strings, text_of
from flsimulation.data.reading import check_owner_column as check_owner_column
from flsimulation.data.reading import unknown_column as unknown_column
from flsimulation.data.refusal import refusal
from flsimulation.data.task import About
from flsimulation.experiment.spec import Data

ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet")
"""How the names of tables end."""


def is_table(path: Path) -> bool:
    """Whether the file's name is that of a table."""
    return path.name.lower().endswith(ENDINGS)


def find_table(folder: Path, part: str) -> Path | None:
    """The table ``train.csv``, ``train.parquet``, ... of a folder, if there is one."""
    paths = (folder / f"{part}{ending}" for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def load_table(train: Path, test: Path | None, spec: Data, seed: int) -> Dataset:
    """Load one table, or a training and a test table with the same columns.

    Raises
    ------
    DataError
        In one line, with column and row, if a column is missing or cannot be used.
    """
    first = read_table(train, spec)
    known = _categories(first, spec)
    described = tuple(_column(first, name, known) for name in first.frame.columns)
    rows = f"{len(first.labels):,} rows; inputs {cells.kinds(described, known)}"
    notes: tuple[str, ...] = (f"{first.file}: {'; '.join((*first.notes, rows))}",)
    about = About(f"column {spec.label_column!r} of {train.name}", table=True)
    examples = _examples(first, known, spec)
    if test is None:
        origin = Inputs(first.file, first.file, described, notes)
        return assemble(spec, seed, examples, None, (), about, origin)
    second = read_table(test, spec, list(first.frame.columns))
    about = about._replace(files=(first.file, second.file))
    held_out = _examples(second, known, spec)
    notes += (f"{second.file}: {'; '.join((*second.notes, f'{len(second.labels):,} rows'))}",)
    origin = Inputs(first.file, second.file, described, notes)
    return assemble(spec, seed, examples, held_out, (), about, origin)


def _categories(table: Table, spec: Data) -> dict[str, tuple[str, ...]]:
    """Categories of each text column. Raises `DataError` for all that are no inputs at once."""
    known, unusable = {}, []
    for name in table.frame.columns:
        if is_numeric(table.frame[name]):
            continue
        try:
            known[name] = cells.categories(text_of(table.frame[name], table.file), spec)
        except cells.UnusableColumnError as error:
            unusable.append(error)
    if unusable:
        raise cells.unusable(unusable, list(table.frame.columns), spec) from None
    return known


def _column(table: Table, name: str, known: dict[str, tuple[str, ...]]) -> Column:
    if name in known:
        missing = int(text_of(table.frame[name], table.file).missing.sum())
        return Column(name, "category", missing, len(known[name]), known[name])
    return Column(name, "number", int(table.frame[name].isna().sum()))


def _examples(table: Table, known: dict[str, tuple[str, ...]], spec: Data) -> Examples:
    """Inputs of a table, float32 [n, inputs], with its labels and clients."""
    blocks = [
        _one_hot(table, name, known[name], spec) if name in known else _numbers(table, name, spec)
        for name in table.frame.columns
    ]
    return Examples(np.concatenate(blocks, axis=1), table.labels, table.owners)


def _one_hot(table: Table, name: str, categories: tuple[str, ...], spec: Data) -> np.ndarray:
    text = text_of(table.frame[name], table.file)
    cells.check_missing(text.missing, name, table.file, spec)
    hot = cells.one_hot(text, categories, spec)
    if spec.fill != "drop":
        hot[text.missing] = 0  # a mean of categories is none
    return hot


def _numbers(table: Table, name: str, spec: Data) -> np.ndarray:
    column = table.frame[name]
    if not is_numeric(column):
        raise refusal(
            spec, f"column {name!r} of {table.file} has words, but numbers in the training file, "
            f"such as {next(c for c in strings(column).tolist() if c)!r}; correct them"
        )  # fmt: skip
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    cells.check_numbers(numbers, name, table.file, spec)
    with np.errstate(over="ignore"):
        return np.asarray(numbers.astype(np.float32)[:, None])
