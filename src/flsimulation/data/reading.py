"""Reading a table: CSV and its relatives, and Parquet, as columns of numbers and of text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flsimulation.data import columns as cells
from flsimulation.data.dialect import Dialect, read_bytes, understand
from flsimulation.data.refusal import refusal
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data
from flsimulation.experiment.suggest import did_you_mean, nearest

_ROWS = "Unnamed: 0"
"""What pandas calls a first column without a name."""


class Table(NamedTuple):
    """A file as it was read."""

    frame: Any
    """``pandas.DataFrame`` of the input columns: numbers with NaN, or text with empty cells."""
    labels: np.ndarray
    owners: np.ndarray | None
    file: str
    notes: tuple[str, ...]
    """How it was understood."""


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
    if not hint and key != "data.input-columns":
        hint = f"; set {key} to one of them"
    return DataError(f"{key} {column!r} is no column of {place}: {', '.join(columns)}{hint}")


def _read_text(path: Path, spec: Data, wanted: list[str] | None) -> Table:
    content = read_bytes(path, spec)
    dialect = understand(content, path.name, spec)
    header = _header(content, dialect, path, spec)
    names: dict[str, Any] = {"index_col": False}  # a separator at line ends makes no index
    if header.index.name == _ROWS:
        names |= {"names": [*header.columns], "header": 0}
    features, notes = _features(header, path, spec, wanted)
    owned = spec.partition_column in header.columns
    texts = [spec.label_column, *([spec.partition_column] if owned else [])]
    frame = _parse(
        content, dialect, path, spec, usecols=[*dict.fromkeys([*features, *texts])],
        dtype=dict.fromkeys(texts, str), na_values={name: ["", *spec.missing_values] for name in features if name not in texts},
        **names,
    )  # fmt: skip
    words = [name for name in features if name not in texts and not is_numeric(frame[name])]
    if words:
        again = _parse(content, dialect, path, spec, usecols=words, dtype=str, **names)
        for name in words:
            frame[name] = _column(again[name], dialect.decimal, spec)
    return _table(frame, features, owned, path, spec, dialect.decimal, (str(dialect), *notes))


def _column(column: Any, decimal: str, spec: Data) -> Any:
    """Cells of a text column; numbers if all that is odd about them is a mark between thousands."""
    plain = cells.ungrouped(strings(column), decimal, spec)
    if plain is None:
        return column.to_numpy()
    missing = np.isin(plain, ["", *spec.missing_values])
    return np.where(missing, "nan", np.char.replace(plain, decimal, ".")).astype(np.float64)


def _header(content: bytes, dialect: Dialect, path: Path, spec: Data) -> Any:
    """First rows with the names of all columns; a column without a name is R's index of rows."""
    import pandas as pd  # type: ignore[import-untyped]

    header = _parse(content, dialect, path, spec, nrows=100)
    indexed = not isinstance(header.index, pd.RangeIndex)
    if not len(header) or not (indexed or _ROWS in header.columns):
        return header
    rows = _parse(content, dialect, path, spec, nrows=100, header=None, skiprows=1)
    further = rows.shape[1] - header.shape[1]
    if further > 0 and rows.iloc[:, -1].isin(["", np.nan]).all():
        further -= 1  # only a separator at the end of each line
        indexed = False
    if further > indexed or (indexed and _ROWS in header.columns):
        raise refusal(spec, f"{path.name} has rows with more cells than its header; name them all")
    if indexed:
        return header.rename_axis(_ROWS).reset_index().rename_axis(_ROWS)
    return _parse(content, dialect, path, spec, nrows=100, index_col=False)


def _parse(content: bytes, dialect: Dialect, path: Path, spec: Data, **options: Any) -> Any:
    """Parse a text table with pandas; cells are missing only where ``na_values`` says so."""
    import pandas as pd

    separator = r"\s+" if dialect.separator == " " else dialect.separator
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # of a separator at line ends
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
        frame[name] = _plain(frame[name])
    owned = spec.partition_column in frame.columns
    return _table(frame, features, owned, path, spec, ".", ("Parquet", *notes))


def _plain(column: Any) -> Any:
    """A stored column as text if it has dates, as numbers if it has decimals."""
    import pandas as pd

    if column.dtype.kind in "Mm":
        return column.astype(str)
    first = next(iter(column.dropna()), None)
    return pd.to_numeric(column) if isinstance(first, Decimal) else column


def _features(
    frame: Any, path: Path, spec: Data, wanted: list[str] | None
) -> tuple[list[str], list[str]]:
    """Input columns of a file, and notes of what is left out."""
    names = [str(name) for name in frame.columns]
    if spec.label_column not in names:
        raise unknown_column("data.label-column", spec.label_column, path.name, names)
    check_owner_column(spec, path.name, names)
    if f"{spec.label_column}.1" in names:  # so pandas names a second column of that name
        raise refusal(
            spec, f"{path.name} has several columns {spec.label_column!r}, and all but one would be "
            f"inputs; rename or remove them"
        )  # fmt: skip
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
    unnamed = name == names[0] and (name.startswith(_ROWS) or not name.strip())
    column = frame[name]
    whole = column.dtype.kind in "iu" or frame.index.name == _ROWS
    return bool(unnamed and column.is_unique and whole)


def _table(
    frame: Any, features: list[str], owned: bool, path: Path, spec: Data, decimal: str,
    notes: tuple[str, ...],
) -> Table:  # fmt: skip
    if not len(frame):
        raise refusal(spec, f"{path.name} has no row below its header; add the examples")
    label = frame[spec.label_column]
    labels = _stored(label)
    if labels is None:
        text = text_of(label, path.name)
        plain = cells.ungrouped(text.cells, decimal, spec)
        text = text if plain is None else text._replace(cells=plain)
        labels = cells.labels(text, decimal, tuple(spec.missing_values), spec)
    owner = frame[spec.partition_column] if owned else None
    owners = None if owner is None else cells.clients(text_of(owner, path.name), spec)
    return Table(frame[features], labels, owners, path.name, notes)


def _stored(column: Any) -> np.ndarray | None:
    """Labels that a file stores as numbers, none of them missing; else None."""
    if column.dtype.kind not in "iuf" or column.isna().any():
        return None
    return np.asarray(column.to_numpy(np.float64 if column.dtype.kind == "f" else np.int64))


def strings(column: Any) -> np.ndarray:
    """Cells as text without spaces around; empty where missing."""
    words = column.astype(object).where(column.notna(), "").tolist()
    return np.array([str(word).strip() for word in words], dtype=np.str_)


def text_of(column: Any, file: str) -> cells.Text:
    """Cells of a column as text. Raises `DataError` where they are lists."""
    first = next((c for c in column.tolist() if isinstance(c, (list, dict, np.ndarray))), None)
    if first is not None:
        raise DataError(f"column {column.name!r} of {file} has lists; save it as an NPZ file")
    return cells.Text(strings(column), str(column.name), file)


def is_numeric(column: Any) -> bool:
    """Whether a column was read as numbers, or as true and false."""
    kind: str = getattr(column.dtype, "kind", "O")
    return kind in "buif"


def _looks_like_a_number(name: str) -> bool:
    return name.replace(".", "", 2).lstrip("-").isdigit()
