"""What a LightningModule logged, under the names that runs are compared by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from flsimulation.training.measured import Measured, several_numbers

RETURNED = ""
"""Stands among what was logged for the loss that ``validation_step`` returned."""

_LOSS = frozenset(("loss",))
_ACCURACY = frozenset(("accuracy", "acc"))
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_STAGES = frozenset(("val", "valid", "validation", "test", "train", "training", "eval"))


def scores(
    logged: Mapping[str, Tensor | float], given: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Name the loss and the accuracy among what a module logged; keep the rest as it is.

    The loss is a metric whose name has the word ``loss`` (``val_loss``, ``loss/valid``, ``valLoss``),
    the accuracy one with ``accuracy`` or ``acc``; of several, the name with nothing but this word
    and a stage, then the one of fewest words, then the first. A module that logs no loss has the one
    that its step returned. ``given`` takes precedence.

    Raises
    ------
    ClientError
        If a value is not one number.
    """
    values = {name: _number(name, value) for name, value in logged.items()}
    known = _standard(values)
    named = {known[name]: values.pop(name) for name in known}
    values.pop(RETURNED, None)
    return {**named, **values, **(given or {})}


def measured(found: Measured) -> Measured:
    """The same for what an evaluation measured, with the states of its metrics."""
    known = _standard(found)
    return Measured(
        scores(found),
        {known.get(name, name): state for name, state in found.states.items()},
        {known.get(name, name): why for name, why in found.why_not.items()},
    )


def returned_loss(output: Any) -> Tensor | None:
    """The loss in what a step returned, itself or by name in a mapping; None if there is none."""
    if isinstance(output, Mapping):
        names = [name for name in output if isinstance(name, str)]
        output = output.get(_best(_LOSS, names) or "loss")
    is_loss = isinstance(output, Tensor) and output.numel() == 1 and output.is_floating_point()
    return output.detach().reshape(()) if is_loss else None


def _standard(names: Iterable[str]) -> dict[str, str]:
    """The standard names of those that have one, by name."""
    names = list(names)
    loss = _best(_LOSS, names) or (RETURNED if RETURNED in names else None)
    found = {"loss": loss, "accuracy": _best(_ACCURACY, names)}
    return {name: standard for standard, name in found.items() if name is not None}


def _best(words: frozenset[str], names: Iterable[str]) -> str | None:
    found = {name: own for name in names if words & {*(own := _words(name))}}
    return min(
        found, key=lambda n: (not {*found[n]} <= words | _STAGES, len(found[n])), default=None
    )


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _number(name: str, value: Tensor | float) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise several_numbers(name, value)
    return float(value)
