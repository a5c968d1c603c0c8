"""Columns of a Hugging Face table: what kind they are, and images that are read when needed."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

from flsimulation.data.arrays import refusal
from flsimulation.data.pictures import Picture
from flsimulation.experiment.spec import Data

if TYPE_CHECKING:
    from PIL import Image

TEXT = ("string", "large_string", "string_view")
"""Types of text."""
_OTHERS = ("Audio", "Video", "Translation", "Pdf")
_BLOCK = 64
"""Encoded images that are in memory at a time."""


def leaf(feature: Any) -> str:
    """Type of the numbers in a column, however deep its lists are."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(getattr(feature, "dtype", ""))


def check_numeric(name: str, feature: Any, spec: Data) -> None:
    """Refuse a column of inputs that are not numbers. Raises `DataError`."""
    kind = leaf(feature)
    if kind in TEXT:
        raise refusal(
            spec,
            f"column {name!r} holds text, and models need numbers; tokenise it, with a function of "
            f"your own (path/to/file.py:function) that returns token ids, or leave the column out",
        )
    if kind.startswith(("timestamp", "date", "time", "duration", "binary", "large_binary")):
        raise refusal(spec, f"column {name!r} holds {kind}, not numbers; convert it")
    if isinstance(feature, dict) or type(feature).__name__ in _OTHERS:
        raise refusal(
            spec,
            f"column {name!r} holds {_kind(feature)}, not numbers; convert it, with a function of "
            f"your own (path/to/file.py:function)",
        )


def check_label(name: str, feature: Any, spec: Data) -> None:
    """Refuse a column of labels that are neither numbers nor words. Raises `DataError`."""
    inner = type(feature).__name__
    if inner == "Image":
        raise refusal(
            spec,
            f"column {name!r} holds images, which are labels only as masks in a folder "
            f"(file:PATH with images/ and masks/); save them so, or name another "
            f"data.label-column",
        )
    if isinstance(feature, dict) or inner in _OTHERS:
        raise refusal(
            spec,
            f"column {name!r} holds {_kind(feature)}, not labels; name another data.label-column",
        )


def _kind(feature: Any) -> str:
    return "records" if isinstance(feature, dict) else type(feature).__name__


def pictures_of(table: Any, spec: Data) -> list[Picture]:
    """Images of the column ``data.image-column``, decoded only when they are opened."""
    import datasets

    column = spec.image_column
    if empty := table.data.column(column).null_count:
        raise refusal(spec, f"column {column!r} has {empty} rows without an image; remove them")
    stored = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    cells = _Cells(stored, column)
    return [Picture(f"image {row}", partial(_open, cells, row)) for row in range(len(stored))]


def _open(cells: _Cells, row: int) -> Image.Image:
    from PIL import Image

    cell = cells[row]
    if cell["bytes"] is not None:
        return Image.open(io.BytesIO(cell["bytes"]))
    return Image.open(cell["path"])


class _Cells:
    """Encoded images of a column, read in blocks: one row at a time takes as long as decoding."""

    def __init__(self, table: Any, column: str) -> None:
        self._table, self._column = table, column
        self._start, self._block = 0, list[Any]()

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row - self._start < len(self._block):
            self._start = row - row % _BLOCK
            self._block = self._table[self._start : self._start + _BLOCK][self._column]
        return self._block[row - self._start]
