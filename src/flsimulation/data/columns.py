"""Columns of a table: which are inputs, and how cells become numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flsimulation.data.dataset import Column
from flsimulation.data.refusal import counted, refusal
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)")
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2}.*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}.*")
_MOST_CATEGORIES = 50
_FEWEST = 10  # categories that are always accepted
_LONGEST = 40  # characters of a cell that an error shows
_MOST_LISTED = 30  # columns that an error lists
_STRAY = 0.2  # share of a column of numbers that may be words, and still is one with mistakes


class Text(NamedTuple):
    """Cells of a text column, and the place that errors name."""

    cells: np.ndarray
    """str [n]; empty where missing."""
    name: str
    file: str

    @property
    def missing(self) -> np.ndarray:
        """Whether each cell is empty, bool [n]."""
        return np.asarray(self.cells == "")


class UnusableColumnError(DataError):
    """A column that can be no input, whatever is corrected in single cells."""

    def __init__(self, text: Text, reason: str, remedy: str = "") -> None:
        super().__init__(f"column {text.name!r} of {text.file} {reason}")
        self.column = text.name
        self.file = text.file
        self.reason = reason
        self.remedy = remedy


def unusable(
    errors: Sequence[UnusableColumnError], columns: Sequence[str], spec: Data
) -> DataError:
    """One error for all columns that are no inputs, with the setting that leaves them out.

    Parameters
    ----------
    columns : sequence of str
        All input columns of the table, the unusable ones too.
    """
    remedies = "".join(
        f"{remedy}, or " for remedy in dict.fromkeys(e.remedy for e in errors if e.remedy)
    )
    left_out = {error.column for error in errors}
    kept = [f'"{name}"' for name in columns if name not in left_out]
    setting = f": data.input-columns = [{', '.join(kept)}]" if 0 < len(kept) <= _MOST_LISTED else ""
    if len(errors) == 1:
        return refusal(spec, f"{errors[0]}; {remedies}leave it out by data.input-columns{setting}")
    named = "; ".join(f"{error.column!r} {error.reason}" for error in errors)
    return refusal(
        spec, f"{len(errors)} columns of {errors[0].file} are no inputs ({named}); "
        f"{remedies}leave them out by data.input-columns{setting}"
    )  # fmt: skip


def clients(text: Text, spec: Data) -> np.ndarray:
    """Clients: whole numbers where every cell is written as one, else text. Raises `DataError`."""
    _check_empty(text, spec)
    if all(_INTEGER.fullmatch(cell) for cell in np.unique(text.cells).tolist()):
        return _parsed(text.cells, np.unique(text.cells).tolist(), ".")
    return text.cells


def labels(text: Text, decimal: str, words: tuple[str, ...], spec: Data) -> np.ndarray:
    """Labels: numbers where every cell is written as a number, else text.

    ``01`` is text, because a number would not keep its zero; so is ``NA``.

    Raises
    ------
    DataError
        If a cell is empty, or a column of numbers has a word for a missing one.
    """
    cells = text.cells
    _check_empty(text, spec)
    distinct = np.unique(cells).tolist()
    plain = [cell for cell in distinct if _is_number(cell, decimal)]
    if len(plain) == len(distinct):
        return _parsed(cells, distinct, decimal)
    odd = [cell for cell in distinct if cell not in plain]
    strays = len(plain) > _FEWEST and len(odd) <= _STRAY * len(distinct)
    if spec.task != "classification" and (strays or (len(plain) > 1 and {*odd} <= {*words})):
        where = np.isin(cells, odd)
        raise refusal(
            spec, f"column {text.name!r} of {text.file} has numbers, but "
            f"{counted(int(where.sum()), 'cell')} such as {odd[0]!r}, the first in row "
            f"{_row(where)}; correct or remove these rows, or set data.task = 'classification' if "
            f"they are classes"
        )  # fmt: skip
    return cells


def ungrouped(cells: np.ndarray, decimal: str, spec: Data) -> np.ndarray | None:
    """Numbers, some of which are written as ``1,300.50``, without the marks between thousands.

    Parameters
    ----------
    cells : np.ndarray
        str [n]; empty where missing.

    Returns
    -------
    np.ndarray or None
        str [n]; None if a cell is no number, if no cell has such a mark, or if ``1,300`` may be a
        decimal: ``data.decimal`` is not set and no cell has both marks.
    """
    mark = "," if decimal == "." else "."
    grouped = re.compile(rf"[+-]?[1-9]\d{{0,2}}(\{mark}\d{{3}})+(\{decimal}\d*)?")
    distinct = set(np.unique(cells[cells != ""]).tolist()) - {*spec.missing_values}
    marked = {cell for cell in distinct if grouped.fullmatch(cell)}
    if not marked or not all(_is_number(cell, decimal) for cell in distinct - marked):
        return None
    if not spec.decimal and not any(decimal in cell for cell in marked):
        return None
    return np.array([c.replace(mark, "") if c in marked else c for c in cells.tolist()])


def _check_empty(text: Text, spec: Data) -> None:
    if missing := int(text.missing.sum()):
        raise refusal(
            spec,
            f"{text.file} has {counted(missing, 'empty cell')} in "
            f"{text.name!r}, the first in row {_row(text.missing)}; fill them, or remove their rows",
        )


def categories(text: Text, spec: Data) -> tuple[str, ...]:
    """Categories of a text column in sorted order, after it is sure that it has categories.

    Raises
    ------
    UnusableColumnError
        If the column is empty, or its cells are dates or free text.
    DataError
        If the cells are numbers with mistakes.
    """
    cells = text.cells[~text.missing]
    distinct = np.unique(cells).tolist()
    if not distinct:
        raise UnusableColumnError(text, "is empty")
    numbers = [cell for cell in distinct if _NUMBER.fullmatch(cell)]
    if sum(bool(_DATE.fullmatch(cell)) for cell in distinct) >= 0.9 * len(distinct):
        raise UnusableColumnError(
            text,
            f"has dates such as {distinct[0]!r}, which are no input",
            "turn dates into numbers",
        )
    _check_strays(text, cells, numbers, spec)
    if len(distinct) > max(_FEWEST, min(_MOST_CATEGORIES, len(cells) / 2)):
        raise _too_many(text, distinct, len(cells), numbers=len(numbers) == len(distinct))
    return tuple(distinct)


def _check_strays(text: Text, cells: np.ndarray, numbers: list[str], spec: Data) -> None:
    """Refuse a column of numbers, some of whose cells are words. Raises `DataError`."""
    odd = ~np.isin(cells, numbers)
    if numbers and 0 < odd.mean() <= _STRAY and len(numbers) > 2:
        word, row = str(cells[odd][0]), _row(text.cells == cells[odd][0])
        raise refusal(
            spec, f"column {text.name!r} of {text.file} has numbers, but {word!r} in row {row} "
            f"({counted(int(odd.sum()), 'such cell')}); correct them, or add {word!r} to data.missing-values"
        )  # fmt: skip


def _too_many(text: Text, distinct: list[str], rows: int, *, numbers: bool) -> UnusableColumnError:
    """Say what too many distinct cells are: numbers, sentences or names."""
    such = f"(such as {_shortened(distinct[0])!r})"
    if not numbers and np.mean([len(cell.split()) > 2 for cell in distinct]) > 0.5:
        return UnusableColumnError(
            text, f"has {len(distinct):,} distinct texts in {rows:,} rows {such}",
            "turn texts into numbers in a function of your own (data.dataset = 'FILE.py:FUNCTION')",
        )  # fmt: skip
    kind = "numbers as text" if numbers else "distinct words"
    return UnusableColumnError(
        text, f"has {len(distinct):,} {kind} in {rows:,} rows {such}, too many for categories",
        "set data.decimal" if numbers else "",
    )  # fmt: skip


def _shortened(cell: str) -> str:
    return cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 3]}..."


def one_hot(text: Text, names: tuple[str, ...], spec: Data) -> np.ndarray:
    """Cells as float32 [n, categories]; an empty one is NaN, in all of its row's numbers.

    Raises
    ------
    DataError
        If a cell is none of the categories.
    """
    index = {name: number for number, name in enumerate(names)}
    numbers = np.array([index.get(cell, -1) for cell in text.cells.tolist()])
    unknown = (numbers < 0) & ~text.missing
    if unknown.any():
        raise refusal(
            spec, f"column {text.name!r} of {text.file} has {str(text.cells[unknown][0])!r} in row "
            f"{_row(unknown)}, which the training file does not have; correct it, or add rows "
            f"of it to the training file"
        )  # fmt: skip
    hot = np.zeros((len(numbers), len(names)), np.float32)
    hot[np.arange(len(numbers)), numbers] = 1  # the last one for empty cells, replaced now
    hot[text.missing] = np.nan
    return hot


def check_numbers(numbers: np.ndarray, name: str, file: str, spec: Data) -> None:
    """Refuse infinity, and what is missing where ``data.fill`` does not say what replaces it."""
    infinite = np.isinf(numbers)
    if infinite.any():
        value = numbers[infinite][0]
        raise refusal(
            spec, f"column {name!r} of {file} has {counted(int(infinite.sum()), 'infinite number')}, the "
            f"first, {value:g}, in row {_row(infinite)}; correct them, or leave the column out by "
            f"data.input-columns"
        )  # fmt: skip
    check_missing(np.isnan(numbers), name, file, spec)


def check_missing(missing: np.ndarray, name: str, file: str, spec: Data) -> None:
    """Refuse missing cells, bool [n], where ``data.fill`` does not say what replaces them."""
    if missing.any() and spec.fill == "refuse":
        raise refusal(
            spec, f"{file} has {counted(int(missing.sum()), 'missing cell')} in column {name!r}, the first in "
            f"row {_row(missing)}; fill them, or set data.fill to mean, median, zero or drop"
        )  # fmt: skip


def kinds(columns: tuple[Column, ...], categories: Mapping[str, tuple[str, ...]]) -> str:
    """The inputs for a note: ``rooms, area (number), site (category: AS, EU, NA)``."""
    numbers = [column.name for column in columns if column.kind == "number"]
    listed = numbers if len(numbers) <= 8 else [*numbers[:6], "...", numbers[-1]]
    parts = [f"{', '.join(listed)} (number)"] if numbers else []
    for column in columns:
        if column.kind == "category":
            named = [" ".join(name.split()) for name in categories[column.name]]
            listed = named if len(named) <= 6 else [*named[:5], f"... {len(named)}"]
            parts.append(f"{column.name} (category: {', '.join(listed)})")
    return ", ".join(parts)


def _parsed(cells: np.ndarray, distinct: list[str], decimal: str) -> np.ndarray:
    if all(_INTEGER.fullmatch(cell) for cell in distinct):
        whole = np.array([int(cell) for cell in cells.tolist()], dtype=object)
        if abs(whole).max() < 2**63:
            return whole.astype(np.int64)
        return cells
    return np.array([float(cell.replace(decimal, ".")) for cell in cells.tolist()])


def _is_number(cell: str, decimal: str) -> bool:
    other = "," if decimal == "." else "."
    return _NUMBER.fullmatch(cell) is not None and other not in cell


def _row(where: np.ndarray) -> int:
    """Number of the first row, from 1, below the header."""
    return int(np.argmax(where)) + 1
