"""How a text file of a table is written: its separator, decimal mark and encoding."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from flsimulation.data.refusal import refusal
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_SAMPLE = 100_000  # characters that are looked at
_LINES = 200
_SEPARATORS = (",", ";", "\t", "|")
_POINT = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)
_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_WORDS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'", " ": "space"}


class Dialect(NamedTuple):
    """How a file is written."""

    separator: str
    decimal: str
    encoding: str

    def __str__(self) -> str:
        """For a note: ``separator ';', decimal ',', cp1252``."""
        mark = _WORDS.get(self.separator, repr(self.separator))
        return f"separator {mark}, decimal {self.decimal!r}, {self.encoding.removesuffix('-sig')}"


def read_bytes(path: Path, spec: Data) -> bytes:
    """Content of a file, unpacked if its name ends in ``.gz``. Raises `DataError`."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise refusal(spec, f"{path.name} cannot be read: {error}; correct the file") from None


def understand(content: bytes, name: str, spec: Data) -> Dialect:
    """Find how a file is written, where the experiment does not say it.

    Raises
    ------
    DataError
        If it is in no encoding that is tried, not in ``data.encoding``, or its numbers are
        ambiguous.
    """
    encoding = spec.encoding or _encoding(content, name, spec)
    text = _decoded(content, encoding, name)
    lines = [line for line in text[:_SAMPLE].splitlines() if line.strip()][:_LINES]
    if len(text) > _SAMPLE and len(lines) > 1:
        lines = lines[:-1]  # cut short, perhaps
    separator = _plain(spec.separator) or _separator(lines)
    return Dialect(separator, spec.decimal or _decimal(lines, separator, name), encoding)


def _plain(separator: str) -> str:
    return "\t" if separator in ("\\t", "tab") else separator


def _encoding(content: bytes, name: str, spec: Data) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if content.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    for encoding in ("utf-8", "cp1252"):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    raise refusal(spec, f"{name} is neither utf-8 nor cp1252; set data.encoding")


def _decoded(content: bytes, encoding: str, name: str) -> str:
    try:
        return content.decode(encoding)
    except (UnicodeError, LookupError) as error:
        raise DataError(
            f"data.encoding {encoding!r} does not fit {name}: {error}; correct it, or leave it out"
        ) from None


def _separator(lines: list[str]) -> str:
    """The mark by which most lines have as many cells as the first one, and more than one."""
    best, chosen = (0.0, 1), ","
    for mark in _SEPARATORS:
        widths = [len(cells) for cells in _cells(lines, mark)]
        if widths and widths[0] > 1:
            score = (sum(width == widths[0] for width in widths) / len(widths), widths[0])
            if score > best:
                best, chosen = score, mark
    return chosen if best[1] > 1 else _spaces(lines)


def _spaces(lines: list[str]) -> str:
    widths = {len(line.split()) for line in lines}
    return " " if len(lines) > 1 and len(widths) == 1 and widths.pop() > 1 else ","


def _decimal(lines: list[str], separator: str, name: str) -> str:
    cells = [cell.strip() for row in _cells(lines[1:], separator) for cell in row]
    commas = [cell for cell in cells if _COMMA.fullmatch(cell)]
    grouped = [cell for cell in cells if _THOUSANDS.fullmatch(cell)]
    points = any(_POINT.fullmatch(cell) for cell in cells)
    if not commas and not grouped:
        return "."
    if points or (separator == "," and all(_THOUSANDS.fullmatch(cell) for cell in commas)):
        raise DataError(
            f"data.decimal: {name} has numbers such as {(commas or grouped)[0]!r}, in which the "
            f"comma may be a decimal mark or separate thousands; set data.decimal = ',', or "
            f"write them without commas"
        )
    return ","


def _cells(lines: Iterable[str], separator: str) -> list[list[str]]:
    if separator == " ":
        return [line.split() for line in lines]
    if len(separator) != 1:
        return [line.split(separator) for line in lines]
    return list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
