"""What a LightningModule logged, under the names that runs are compared by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_LOSS = ("loss",)
_ACCURACY = ("accuracy", "acc")


def scores(
    logged: Mapping[str, Tensor | float], given: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Name the loss and the accuracy among what a module logged; keep the rest as it is.

    The loss is the first metric whose name has the word ``loss`` (``val_loss``, ``loss/valid``),
    the accuracy the first with ``accuracy`` or ``acc``. ``given`` takes precedence.
    """
    values = {name: float(value) for name, value in logged.items()}
    named = {}
    for standard, words in (("loss", _LOSS), ("accuracy", _ACCURACY)):
        name = _first_with(words, values)
        if name is not None:
            named[standard] = values.pop(name)
    return {**named, **values, **(given or {})}


def _first_with(words: tuple[str, ...], names: Iterable[str]) -> str | None:
    return next((n for n in names if set(words) & set(re.split(r"[^a-z]+", n.lower()))), None)
