"""The shape of a part of a file: its keys, what each may hold, and who says so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Violation(NamedTuple):
    """One thing that is wrong."""

    file: str
    place: str
    message: str
    rule: str
    """Where the rule comes from: a file and function of Grafana, or a page of documentation."""

    def __str__(self) -> str:
        return f"{self.file}: {self.place or 'file'}: {self.message} (rule: {self.rule})"


class Kind(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Key:
    """A key of a shape."""

    kind: Kind
    required: bool = False
    rule: str = ""
    """Where the rule of this key comes from, if not from where the shape comes from."""


@dataclass(frozen=True)
class Shape:
    """A mapping with certain keys.

    Grafana ignores a key that it does not know, so a typo would go unnoticed.
    """

    rule: str
    keys: Mapping[str, Key] = field(default_factory=dict)

    def check(self, file: str, place: str, thing: Mapping[str, Any]) -> Iterator[Violation]:
        """Yield what is wrong with the keys and values of ``thing``."""
        for name in thing:
            if name not in self.keys:
                yield Violation(file, place, self._unknown(str(name)), self.rule)
        for name, key in self.keys.items():
            rule = key.rule or self.rule
            value = thing.get(name)
            if value is None or value == "":
                if key.required:
                    yield Violation(file, place, f"{name} is missing", rule)
            elif not key.kind.holds(value):
                wrong = f"{name} must be {key.kind.words}, got {_shown(value)}"
                yield Violation(file, place, wrong, rule)

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.keys, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(self.keys)}"
        return f"unknown key {name}, which Grafana ignores{hint}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


UID_RULE = "pkg/util/shortid_generator.go: ValidateUID"

_DURATION = re.compile(
    r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?"
)
_SECONDS = (365 * 86400, 7 * 86400, 86400, 3600, 60, 1, 0.001)


def seconds(text: Any) -> float | None:
    """Seconds of a duration in Prometheus's form such as ``1m30s``; None if it is none."""
    found = _DURATION.fullmatch(str(text))
    if str(text) == "0":
        return 0.0
    if not found or not str(text):
        return None
    return sum(int(n) * unit for n, unit in zip(found.groups(), _SECONDS, strict=True) if n)


def is_whole(value: Any) -> bool:
    """Whether Go's strconv.ParseInt takes it."""
    return not isinstance(value, bool) and bool(re.fullmatch(r"[+-]?\d+", str(value)))


def is_scalar(value: Any) -> bool:
    """Whether Go's YAML decoder takes it as a string."""
    return isinstance(value, str | int | float)


def one_of(*values: str) -> Kind:
    """One of these words."""
    return Kind(f"one of {', '.join(values)}", lambda value: value in values)


def text_up_to(length: int) -> Kind:
    """A text that is not blank, of at most ``length`` bytes."""
    return Kind(
        f"a text of 1 to {length} bytes",
        lambda value: is_scalar(value) and 0 < len(str(value).strip().encode()) <= length,
    )


def whole_from(lowest: int) -> Kind:
    """A whole number from ``lowest`` on."""
    return Kind(
        f"a whole number of at least {lowest}",
        lambda value: is_whole(value) and int(value) >= lowest,
    )


TEXT = Kind("a text", is_scalar)
UID = Kind(
    "1 to 40 of a-z, A-Z, 0-9, - and _",
    lambda value: is_scalar(value) and bool(re.fullmatch(r"[A-Za-z0-9_-]{1,40}", str(value))),
)
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
LIST = Kind("a list", lambda value: isinstance(value, list))
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
TEXTS = Kind(
    "a mapping of texts",
    lambda value: isinstance(value, dict) and all(map(is_scalar, value.values())),
)
TEXT_LIST = Kind(
    "a list of texts",
    lambda value: isinstance(value, list) and all(map(is_scalar, value)),
)
DURATION = Kind("a duration such as 1m30s", lambda value: seconds(value) is not None)
POSITIVE_DURATION = Kind("a duration above 0", lambda value: (seconds(value) or 0) > 0)
ORG = whole_from(1)


def items(thing: Any, key: str) -> list[Any]:
    """The list under ``key``; empty where there is none."""
    value = thing.get(key) if isinstance(thing, dict) else None
    return value if isinstance(value, list) else []


def mapping(thing: Any, key: str) -> dict[str, Any]:
    """The mapping under ``key``; empty where there is none."""
    value = thing.get(key) if isinstance(thing, dict) else None
    return value if isinstance(value, dict) else {}


def mappings(thing: Any, key: str) -> list[dict[str, Any]]:
    """The list under ``key``, with an empty mapping where an item is none."""
    return [item if isinstance(item, dict) else {} for item in items(thing, key)]


def text(thing: Any, key: str) -> str:
    """The text under ``key``; empty where there is none."""
    value = thing.get(key) if isinstance(thing, dict) else None
    return str(value) if is_scalar(value) else ""


def keys(names: str, kind: Kind) -> dict[str, Key]:
    """Optional keys of one kind; ``names`` has their names with blanks between."""
    return dict.fromkeys(names.split(), Key(kind))


def again(names: Sequence[str | tuple[str, ...]]) -> list[tuple[int, Any]]:
    """Place and name of each that was there before; a name with nothing at its end is none."""
    return [(i, name) for i, name in enumerate(names) if name and name[-1] and name in names[:i]]
