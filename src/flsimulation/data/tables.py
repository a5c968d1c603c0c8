"""Tables in files: CSV and its relatives, and Parquet. Inputs are numbers and categories."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flsimulation.data import columns as cells
from flsimulation.data.arrays import Examples, Inputs, assemble
from flsimulation.data.dataset import Column, Dataset
from flsimulation.data.dialect import Dialect, read_bytes, understand
from flsimulation.data.refusal import refusal
from flsimulation.data.task import About
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data
from flsimulation.experiment.suggest import did_you_mean, nearest

ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet")
"""How the names of tables end."""


class Table(NamedTuple):
    """A file as it was read."""

    frame: Any
    """``pandas.DataFrame`` of the input columns: numbers with NaN, or text with empty cells."""
    labels: np.ndarray
    owners: np.ndarray | None
    file: str
    notes: tuple[str, ...]
    """How it was understood."""


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
    known = {
        name: cells.categories(_text(first, name), spec)
        for name in first.frame.columns
        if not _is_numeric(first.frame[name])
    }
    described = tuple(_column(first, name, known) for name in first.frame.columns)
    rows = f"{len(first.labels):,} rows; inputs {cells.kinds(described, known)}"
    notes: tuple[str, ...] = (f"{first.file}: {'; '.join((*first.notes, rows))}",)
    about = About(f"column {spec.label_column!r} of {train.name}", table=True)
    examples = _examples(first, known, spec)
    if test is None:
        origin = Inputs(first.file, first.file, described, notes)
        return assemble(spec, seed, examples, None, (), about, origin)
    second = read_table(test, spec, list(first.frame.columns))
    _check_labels(first, second, spec)
    held_out = _examples(second, known, spec)
    notes += (f"{second.file}: {'; '.join((*second.notes, f'{len(second.labels):,} rows'))}",)
    origin = Inputs(first.file, second.file, described, notes)
    return assemble(spec, seed, examples, held_out, (), about, origin)


def read_table(path: Path, spec: Data, wanted: list[str] | None = None) -> Table:
    """Read a file: labels and clients as they are written, input columns as numbers where they are.

    Parameters
    ----------
    wanted : list of str
        Input columns, where another file has determined them.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks a column.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, spec, wanted)
    return _read_text(path, spec, wanted)


def check_owner_column(spec: Data, place: str, columns: Iterable[str]) -> None:
    """Refuse a natural partition by a column that is not there. Raises `DataError`."""
    columns = list(columns)
    if spec.partition == "natural" and spec.partition_column not in columns:
        raise unknown_column("data.partition-column", spec.partition_column, place, columns)


def unknown_column(key: str, column: str, place: str, columns: Iterable[str]) -> DataError:
    """Make the error that says which columns there are, and which one may be meant."""
    columns = list(columns)
    hint = did_you_mean(nearest(column, columns))
    if not hint and columns and all(_looks_like_a_number(name) for name in columns):
        hint = "; the first line must hold the columns' names"
    return DataError(f"{key} {column!r} is no column of {place}: {', '.join(columns)}{hint}")


def _read_text(path: Path, spec: Data, wanted: list[str] | None) -> Table:
    content = read_bytes(path, spec)
    dialect = understand(content, path.name, spec)
    header = _parse(content, dialect, path, spec, nrows=100)
    features, notes = _features(header, path, spec, wanted)
    owned = spec.partition_column in header.columns
    texts = [spec.label_column, *([spec.partition_column] if owned else [])]
    frame = _parse(
        content, dialect, path, spec, usecols=[*dict.fromkeys([*features, *texts])],
        dtype=dict.fromkeys(texts, str), na_values=dict.fromkeys(features, spec.missing_values),
    )  # fmt: skip
    words = [name for name in features if name not in texts and not _is_numeric(frame[name])]
    if words:
        again = _parse(content, dialect, path, spec, usecols=words, dtype=str)
        for name in words:
            frame[name] = again[name]
    return _table(frame, features, owned, path, spec, dialect.decimal, (str(dialect), *notes))


def _parse(content: bytes, dialect: Dialect, path: Path, spec: Data, **options: Any) -> Any:
    """Parse a text table with pandas; cells are missing only where ``na_values`` says so."""
    import pandas as pd  # type: ignore[import-untyped]

    separator = r"\s+" if dialect.separator == " " else dialect.separator
    try:
        return pd.read_csv(
            io.BytesIO(content), sep=separator, decimal=dialect.decimal, encoding=dialect.encoding,
            keep_default_na=False, skipinitialspace=True, low_memory=False, **options,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        raise refusal(
            spec, f"{path.name} cannot be read as CSV: {text}; correct the file"
        ) from None


def _read_parquet(path: Path, spec: Data, wanted: list[str] | None) -> Table:
    import pandas as pd

    try:
        frame = pd.read_parquet(path).reset_index(drop=True)
    except ImportError:
        raise refusal(spec, "a .parquet file needs pyarrow; pip install pyarrow") from None
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        raise refusal(spec, f"{path.name} cannot be read as Parquet: {text}") from None
    features, notes = _features(frame, path, spec, wanted)
    for name in features:
        if frame[name].dtype.kind in "Mm":
            frame[name] = frame[name].astype(str)
    owned = spec.partition_column in frame.columns
    return _table(frame, features, owned, path, spec, ".", ("Parquet", *notes))


def _features(
    frame: Any, path: Path, spec: Data, wanted: list[str] | None
) -> tuple[list[str], list[str]]:
    """Input columns of a file, and notes of what is left out."""
    names = [str(name) for name in frame.columns]
    if spec.label_column not in names:
        raise unknown_column("data.label-column", spec.label_column, path.name, names)
    check_owner_column(spec, path.name, names)
    for name in spec.input_columns:
        if name not in names:
            raise unknown_column("data.input-columns", name, path.name, names)
        if name == spec.label_column:
            raise DataError(f"data.input-columns has the label {name!r}; leave it out")
    for name in wanted or ():
        if name not in names:
            raise refusal(spec, f"{path.name} lacks the training set's column {name!r}; add it")
    others = [n for n in names if n not in (spec.label_column, spec.partition_column)]
    if wanted is not None:
        extra = [] if spec.input_columns else [n for n in others if n not in wanted]
        extra = [name for name in extra if not _is_index(frame, name, names)]
        return wanted, [f"not in the training file, not used: {', '.join(extra)}"] if extra else []
    if spec.input_columns:
        return list(dict.fromkeys(spec.input_columns)), []
    index = [name for name in others if _is_index(frame, name, names)]
    kept = [name for name in others if name not in index]
    if not kept:
        raise refusal(spec, f"{path.name} has no column beside data.label-column; add the inputs")
    return kept, [f"column {name!r} is a saved index, not used" for name in index]


def _is_index(frame: Any, name: str, names: list[str]) -> bool:
    """Whether a column is the index of a saved DataFrame: first, without a name, whole numbers."""
    unnamed = name == names[0] and (name.startswith("Unnamed: 0") or not name.strip())
    column = frame[name]
    return bool(unnamed and column.is_unique and column.to_numpy().dtype.kind in "iu")


def _table(
    frame: Any, features: list[str], owned: bool, path: Path, spec: Data, decimal: str,
    notes: tuple[str, ...],
) -> Table:  # fmt: skip
    if not len(frame):
        raise refusal(spec, f"{path.name} has no row below its header; add the examples")
    missing = tuple(spec.missing_values)
    labels = _as_written(frame[spec.label_column], path, spec, decimal, missing)
    owner = frame[spec.partition_column] if owned else None
    owners = None if owner is None else _as_written(owner, path, spec, decimal, ())
    return Table(frame[features], labels, owners, path.name, notes)


def _as_written(
    column: Any, path: Path, spec: Data, decimal: str, missing: tuple[str, ...]
) -> np.ndarray:
    """Labels or clients as numbers or text."""
    if column.dtype.kind in "iu" and not column.isna().any():
        return np.asarray(column.to_numpy(np.int64))
    if column.dtype.kind == "f" and not column.isna().any():
        return np.asarray(column.to_numpy(np.float64))
    text = cells.Text(_strings(column), str(column.name), path.name)
    return cells.values(text, decimal, missing, spec)


def _strings(column: Any) -> np.ndarray:
    """Cells as text without spaces around; empty where missing."""
    words = column.astype(object).where(column.notna(), "").tolist()
    return np.array([str(word).strip() for word in words], dtype=np.str_)


def _text(table: Table, name: str) -> cells.Text:
    column = table.frame[name]
    first = next((c for c in column.tolist() if isinstance(c, (list, dict, np.ndarray))), None)
    if first is not None:
        raise DataError(f"column {name!r} of {table.file} has lists; save it as an NPZ file")
    return cells.Text(_strings(column), name, table.file)


def _is_numeric(column: Any) -> bool:
    kind: str = getattr(column.dtype, "kind", "O")
    return kind in "buif"


def _column(table: Table, name: str, known: dict[str, tuple[str, ...]]) -> Column:
    if name in known:
        return Column(name, "category", int(_text(table, name).missing.sum()), len(known[name]))
    return Column(name, "number", int(table.frame[name].isna().sum()))


def _examples(table: Table, known: dict[str, tuple[str, ...]], spec: Data) -> Examples:
    """Inputs of a table, float32 [n, inputs], with its labels and clients."""
    blocks = [
        _one_hot(table, name, known[name], spec) if name in known else _numbers(table, name, spec)
        for name in table.frame.columns
    ]
    return Examples(np.concatenate(blocks, axis=1), table.labels, table.owners)


def _one_hot(table: Table, name: str, categories: tuple[str, ...], spec: Data) -> np.ndarray:
    text = _text(table, name)
    cells.check_missing(text.missing, name, table.file, spec)
    hot = cells.one_hot(text, categories, spec)
    if spec.fill != "drop":
        hot[text.missing] = 0  # a mean of categories is none
    return hot


def _numbers(table: Table, name: str, spec: Data) -> np.ndarray:
    column = table.frame[name]
    if not _is_numeric(column):
        raise refusal(
            spec, f"column {name!r} of {table.file} has words, but numbers in the training file, "
            f"such as {next(c for c in _strings(column) if c)!r}; correct them"
        )  # fmt: skip
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    cells.check_numbers(numbers, name, table.file, spec)
    with np.errstate(over="ignore"):
        return np.asarray(numbers.astype(np.float32)[:, None])


def _check_labels(train: Table, test: Table, spec: Data) -> None:
    """Refuse classes of the test file that the training file does not have."""
    if train.labels.dtype.kind != "U" or test.labels.dtype.kind != "U":
        return
    unknown = ~np.isin(test.labels, train.labels)
    if unknown.any():
        row = int(np.argmax(unknown))
        raise refusal(
            spec, f"{test.file} has the label {test.labels[row]!r} in row {row + 1}, which "
            f"{train.file} does not have; correct it, or add rows of it to {train.file}"
        )  # fmt: skip


def _looks_like_a_number(name: str) -> bool:
    return name.replace(".", "", 2).lstrip("-").isdigit()
