"""Numbers as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

ABSENT = "\N{EN DASH}"
"""Stands where a table has no value."""


def count(value: float | None) -> str:
    """``101770`` -> ``101,770``."""
    return ABSENT if value is None else f"{value:,.0f}"


def score(name: str, value: float | None) -> str:
    """Write an accuracy as percentage, any other metric with four significant digits or more."""
    if value is None:
        return ABSENT
    if is_share(name):
        return f"{value:.2%}"
    if 1e4 <= abs(value) < 1e7:
        return count(value)
    return re.sub(r"e\+?(-?)0?", r"e\1", f"{value:.4g}")  # e9, not e+09


def heading(text: str) -> str:
    """``test mAP`` -> ``Test mAP``: only the first letter changes."""
    return text[:1].upper() + text[1:]


def is_share(name: str) -> bool:
    """Whether the metric ``name`` lies in 0..1 and reads best as percentage."""
    return name.endswith("accuracy")


def size(value: float | None) -> str:
    """Bytes in decimal units: ``12400000`` -> ``12.4 MB``."""
    if value is None:
        return ABSENT
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def duration(seconds: float | None) -> str:
    """``0.42 s``, ``12.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds is None:
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def plural(number: int, noun: str) -> str:
    """``1 client``, ``2 clients``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listing(numbers: Sequence[int], most: int = 8) -> str:
    """``0, 3, 7 and 12 more``."""
    shown = ", ".join(str(number) for number in numbers[:most])
    return shown + (f" and {len(numbers) - most:,} more" if len(numbers) > most else "")


def spread(low: float, high: float) -> str:
    """``12`` or ``12 to 30``."""
    return count(low) if math.isclose(low, high) else f"{count(low)} to {count(high)}"


def short(text: str, most: int = 16) -> str:
    """``text``, printable and cut to ``most`` characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
