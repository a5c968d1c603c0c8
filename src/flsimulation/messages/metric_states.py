"""States of metric objects that clients sent, checked before they are merged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from flwr.app import ArrayRecord

from flsimulation.errors import one_line
from flsimulation.messages.arrays import HeldArray, joined, size_of
from flsimulation.messages.received import MOST_METRICS, NUMBERS, name_of, rejected, values_in

_KIND = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}


class StateForm(NamedTuple):
    """What a state of a metric object is made of."""

    shape: tuple[int, ...] | None
    """None of a list, whose arrays are named ``name[0]``, ``name[1]``, ... and have any shape."""
    kind: str
    """Of its numbers, as NumPy's ``dtype.kind``; empty of a list."""


Forms: TypeAlias = Mapping[str, Mapping[str, StateForm]]
"""The states of a model's metric objects by name, by the object's path in the model."""
NO_FORMS: Forms = {}
"""Nothing is known of the server's metric objects."""


def checked_states(
    states: ArrayRecord, longest: int, forms: Forms = NO_FORMS, examples: int = 2**31
) -> ArrayRecord:
    """States of metric objects, decoded: arrays of numbers, in the form of the server's own.

    Parameters
    ----------
    states : ArrayRecord
        As received.
    longest : int
        Most bytes that they may have.
    forms : mapping
        Of the server's metric objects. States of others are arrays of numbers, which nobody merges.
    examples : int
        Of the evaluation; a list has at most one array for each.

    Raises
    ------
    ClientError
        If they are anything else.
    """
    if len(states) > MOST_METRICS + examples or size_of(states) > longest:
        raise rejected("its states of metrics are too large")
    found: dict[str, HeldArray] = {}
    grouped: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name, array in states.items():
        if name.count("\n") != 2 or not name.replace("\n", "").isprintable():
            raise rejected(f"a state of its metrics is named {one_line(repr(name), 100)}")
        held = array if isinstance(array, HeldArray) else HeldArray(values_in(name, array))
        if held.numpy().dtype.kind not in NUMBERS:
            raise rejected(f"a state of its metrics is {held.dtype}")
        if held.numpy().dtype.kind in "fc" and np.isnan(held.numpy()).any():
            raise rejected(f"a state of its metrics is not a number: {name.replace(chr(10), ' ')}")
        found[name] = held
        score, path, own = name.split("\n")
        grouped.setdefault((name_of(score), path), {})[own] = held.numpy()
    for (score, path), arrays in grouped.items():
        if path in forms:
            _check_forms(score, arrays, forms[path], examples)
    return joined(found)


def _check_forms(
    score: str, states: Mapping[str, np.ndarray], forms: Mapping[str, StateForm], examples: int
) -> None:
    """Compare one metric's states with the server's: names, shapes, kinds of numbers."""
    of = f"its states of the metric {score!r}"
    rest = dict(states)
    for name, form in forms.items():
        if form.shape is None:
            _take_list(of, name, rest, examples)
        elif (state := rest.pop(name, None)) is None:
            raise rejected(f"{of} lack {name!r}")
        elif state.dtype.kind != form.kind or not _may_have(form.shape, state.shape):
            what = f"{state.dtype} {list(state.shape)}"
            raise rejected(
                f"{of} have {what} as {name!r}, not {_KIND[form.kind]} {list(form.shape)}"
            )
    if rest:
        raise rejected(f"{of} have an unknown one, {one_line(repr(next(iter(rest))), 100)}")


def _take_list(of: str, name: str, rest: dict[str, np.ndarray], examples: int) -> None:
    """Take the arrays of a list, which are numbered without a gap."""
    count = 0
    while rest.pop(f"{name}[{count}]", None) is not None:
        count += 1
    if count > examples:
        raise rejected(f"{of} have {count:,} arrays in {name!r}, for {examples:,} examples")


def _may_have(expected: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a state has its shape; one that begins as a number may have one for each output."""
    return shape == expected or (math.prod(expected) == 1 and len(shape) <= 1)
