"""What the values of a run directory's files must be: others may have written or damaged them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias


class Shape(NamedTuple):
    """What a value must be."""

    words: str
    fits: Callable[[Any], bool]


Shapes: TypeAlias = Mapping[str, Shape]
"""The shapes of an object's values, by key; other keys may have any value."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(own is None or _is_number(own) for own in value.values())


def _list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _optional(shape: Shape) -> Shape:
    return Shape(f"{shape.words}, or null", lambda value: value is None or shape.fits(value))


TEXT = Shape("a text", lambda value: isinstance(value, str))
WHOLE = Shape("a whole number", _is_whole)
NUMBER = Shape("a number", _is_number)
OBJECT = Shape("an object", lambda value: isinstance(value, dict))
NUMBERS = Shape("an object of numbers", _numbers)
WHOLES = Shape("a list of whole numbers", _list_of(_is_whole))
TEXTS = Shape("a list of texts", _list_of(lambda value: isinstance(value, str)))
COUNTS = Shape(
    "an object of whole numbers",
    lambda value: isinstance(value, dict) and all(map(_is_whole, value.values())),
)
HISTOGRAM = Shape(
    "an object with a list of whole numbers for each client",
    lambda value: (
        isinstance(value, dict)
        and all(key.isdecimal() and WHOLES.fits(own) for key, own in value.items())
    ),
)

ROUND: Shapes = {
    "round": WHOLE,
    "central": _optional(NUMBERS),
    "federated": _optional(NUMBERS),
    "train": _optional(NUMBERS),
    "cohort": _optional(WHOLES),
    "failures": _optional(COUNTS),
    "seconds": _optional(NUMBERS),
    "bytes": _optional(NUMBERS),
    "weights_sha256": _optional(TEXT),
    "privacy": _optional(NUMBERS),
    "secure": _optional(COUNTS),
}
"""A line of rounds.jsonl."""
CLIENT: Shapes = {
    "round": WHOLE,
    "partition": WHOLE,
    "phase": _optional(TEXT),
    "reason": _optional(TEXT),
    "error": _optional(TEXT),
}
"""A line of clients.jsonl."""
_OPTIONAL: Shapes = {
    **dict.fromkeys(("error", "started", "engine", "not-stacked", "gpu", "weights-sha256"), TEXT),
    **dict.fromkeys(("seconds", "choosing-seconds"), NUMBER),
    **dict.fromkeys(("resumed-after", "resumes", "peak-memory-bytes"), WHOLE),
    **dict.fromkeys(("versions", "host", "data", "model"), OBJECT),
    "step-seconds": NUMBERS,
}
MANIFEST: Shapes = {
    "name": TEXT,
    "state": TEXT,
    "rounds": WHOLE,
    "seed": WHOLE,
    **{key: _optional(shape) for key, shape in _OPTIONAL.items()},
}
"""manifest.json."""
DATA: Shapes = {
    "dataset": TEXT,
    "digest": TEXT,
    "classes": TEXTS,
    "notes": TEXTS,
    "train-sites": OBJECT,
    "task": TEXT,
    "train-examples": WHOLE,
    "test-examples": WHOLE,
    "clients": WHOLE,
    "histogram": _optional(HISTOGRAM),
}
"""The key data of manifest.json."""
MODEL: Shapes = {"class": TEXT, "arguments": OBJECT, "parameters": WHOLE}
"""The key model of manifest.json."""


def check(record: Mapping[str, Any], shapes: Shapes, place: str = "") -> None:
    """Raise ``ValueError`` for the first value that has not its shape; keys may be missing."""
    for key, shape in shapes.items():
        if key in record and not shape.fits(record[key]):
            got = repr(record[key])
            got = got if len(got) <= 60 else f"{got[:57]}..."
            raise ValueError(f"{place}{key} must be {shape.words}, got {got}")


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a manifest with a value that has not its shape."""
    check(manifest, MANIFEST)
    check(manifest.get("data") or {}, DATA, "data.")
    check(manifest.get("model") or {}, MODEL, "model.")
    check(
        manifest.get("host") or {},
        dict.fromkeys(("memory-bytes", "processor-count"), _optional(WHOLE)),
        "host.",
    )
