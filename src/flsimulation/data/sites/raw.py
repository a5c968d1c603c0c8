"""One site's examples as they are stored, before the sites have agreed on their form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from flsimulation.data import columns as cells
from flsimulation.data.arrays import inputs as as_inputs
from flsimulation.data.checks import check_finite
from flsimulation.data.files import read_parts, table_at
from flsimulation.data.own import read_own_site
from flsimulation.data.reading import Table, is_numeric, read_table, text_of
from flsimulation.data.refusal import counted
from flsimulation.data.task import About
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


class RawColumn(NamedTuple):
    """An input column of a table."""

    name: str
    cells: np.ndarray
    """float64 [n] with NaN, or str [n] with empty cells."""

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return self.cells.dtype.kind == "f"

    @property
    def missing(self) -> np.ndarray:
        """Whether each cell is missing, bool [n]."""
        return np.asarray(np.isnan(self.cells) if self.is_number else self.cells == "")


@dataclass(frozen=True, eq=False)
class Raw:
    """One site's examples."""

    site: str
    labels: np.ndarray
    about: About
    columns: tuple[RawColumn, ...] = ()
    """Input columns of a table; empty for other data."""
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Inputs that are no table, by name; the name of the only one is empty."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, ..., where the source has them."""
    notes: tuple[str, ...] = ()
    """Lines for people: how the data was read."""


def read_site(site: str, path: Path, spec: Data) -> Raw:
    """Read one site, and nothing beside its path.

    Parameters
    ----------
    site : str
        Its name.
    path : Path
        Its file or folder.
    spec : Data
        The experiment's section ``data``.

    Raises
    ------
    DataError
        In one line that names the site, if it cannot be used as it is.
    """
    own = spec.model_copy(update={"dataset": f"file:{path}", "partition": "iid"})
    with named(site, own):
        if spec.reader:
            return _of_arrays(site, read_own_site(site, path, spec), own)
        if (table := table_at(path)) is not None:
            return _of_table(site, read_table(table, own), own)
        parts = read_parts(path, own)
        left = () if parts.test is None else (_untaken(len(parts.test.y)),)
        x = _as_tensor("", parts.train.x, own, tokens=parts.origin.tokens)
        notes = (*parts.origin.notes, *left)
        return Raw(site, parts.train.y, parts.about, (), {"": x}, tuple(parts.classes), notes)


TEST = "data.test"
"""In place of a site's name where the test set is read."""


class named:  # noqa: N801 - a context manager
    """Name the site in the errors of a block, instead of a path that only the site knows."""

    def __init__(self, site: str, spec: Data) -> None:
        self._site, self._prefix = site, f"data.dataset {spec.dataset!r}: "

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Raise a `DataError` with the site's name."""
        if isinstance(error, DataError):
            who = self._site if self._site == TEST else f"site {self._site}"
            raise DataError(f"{who}: {str(error).removeprefix(self._prefix)}") from None


def _untaken(examples: int) -> str:
    return (
        f"its test set of {counted(examples, 'example')} is not used; a client holds out "
        f"data.validation-fraction of its training examples"
    )


def _of_arrays(site: str, own: Mapping[str, object], spec: Data) -> Raw:
    """What a user's function returned for a site."""
    x, y, classes = own["x"], own["y"], own["classes"]
    assert isinstance(x, dict) and isinstance(y, np.ndarray) and isinstance(classes, tuple)  # noqa: S101, PT018
    tensors = {name: _as_tensor(name, array, spec, tokens=True) for name, array in x.items()}
    _check_lengths({name: len(tensor) for name, tensor in tensors.items()}, len(y))
    return Raw(site, y, About("y", numbered=True), (), tensors, classes)


def _as_tensor(name: str, array: np.ndarray, spec: Data, *, tokens: bool) -> torch.Tensor:
    check_finite(spec, array, f"x[{name!r}]" if name else "inputs")
    tensor = as_inputs(spec, array, tokens)
    if array.dtype.itemsize > 4:
        check_finite(spec, tensor.numpy(), "inputs as float32")
    return tensor


def _check_lengths(inputs: Mapping[str, int], labels: int) -> None:
    for name, length in inputs.items():
        if length != labels:
            raise DataError(f"x{[name] if name else ''} has {length} examples, y has {labels}")
    if not labels:
        raise DataError("it has no examples; add some")


def _of_table(site: str, table: Table, spec: Data) -> Raw:
    columns = tuple(_column(table, str(name), spec) for name in table.frame.columns)
    about = About(f"column {spec.label_column!r}", table=True)
    return _without_missing(Raw(site, table.labels, about, columns, notes=table.notes), spec)


def _column(table: Table, name: str, spec: Data) -> RawColumn:
    column = table.frame[name]
    if name in spec.categories:
        return RawColumn(name, text_of(column, table.file).cells)
    if not is_numeric(column):
        return RawColumn(name, text_of(column, table.file).cells)
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    free = spec.model_copy(update={"fill": "zero"})  # what is missing is counted below
    cells.check_numbers(numbers, name, table.file, free)
    return RawColumn(name, numbers)


def _without_missing(raw: Raw, spec: Data) -> Raw:
    """Apply the rules for missing cells that need no other site: refuse, drop and zero."""
    _refuse_missing(raw, spec)
    dropped = [c.missing for c in raw.columns if rule_of(c.name, spec) == "drop"]
    rows = ~np.any(dropped, axis=0) if dropped else np.ones(len(raw.labels), bool)
    if not rows.any():
        raise DataError(
            "data.fill 'drop' leaves no row: each has a missing cell; use 'mean' or 'zero', or "
            "choose columns by data.input-columns"
        )
    columns = tuple(_zeroed(RawColumn(c.name, c.cells[rows]), spec) for c in raw.columns)
    left = len(rows) - int(rows.sum())
    note = (f"{counted(left, 'row')} with missing cells left out (data.fill drop)",) if left else ()
    return replace(raw, labels=raw.labels[rows], columns=columns, notes=(*raw.notes, *note))


def rule_of(column: str, spec: Data) -> str:
    """What replaces missing cells of a column."""
    return spec.fill_columns.get(column, spec.fill)


def _refuse_missing(raw: Raw, spec: Data) -> None:
    counts = {
        c.name: int(c.missing.sum()) for c in raw.columns if rule_of(c.name, spec) == "refuse"
    }
    gaps = [f"{count} in {name!r}" for name, count in counts.items() if count]
    if gaps:
        raise DataError(
            f"of {len(raw.labels)} rows, cells are missing: {', '.join(gaps)}; fill them, or set "
            f"data.fill (or data.fill-columns) to mean, zero or drop"
        )


def _zeroed(column: RawColumn, spec: Data) -> RawColumn:
    if column.is_number and rule_of(column.name, spec) == "zero":
        return RawColumn(column.name, np.nan_to_num(column.cells, nan=0.0))
    return column
