"""The experiment as Flower's run config: one level, dotted keys, scalars only; and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flsimulation.experiment.spec import Experiment

_JSON = (
    *("model.args", "data.args", "data.input-columns", "data.missing-values", "data.sites"),
    *("data.classes", "data.categories", "data.fill-columns", "train.sites"),
)
"""Lists and tables of the user's own; each travels as one JSON string."""


def flatten(experiment: Experiment) -> dict[str, bool | float | int | str]:
    """Run config of ``experiment``, with keys such as ``data.alpha``.

    The inverse is `unflatten`; nothing is lost on the way.
    """
    flat: dict[str, bool | float | int | str] = {}

    def walk(table: dict[str, Any], prefix: str) -> None:
        for key, value in table.items():
            name = f"{prefix}{key}"
            if name in _JSON:
                flat[name] = json.dumps(value)
            elif isinstance(value, dict):
                walk(value, f"{name}.")
            else:
                flat[name] = value

    walk(experiment.model_dump(by_alias=True), "")
    return flat


def unflatten(config: Mapping[str, Any]) -> Experiment:
    """Experiment of a run config made by `flatten`; keys of ``driver.`` are not the experiment's.

    Raises
    ------
    pydantic.ValidationError
        If a key or a value is not one of the experiment's.
    """
    tree: dict[str, Any] = {}
    for name, value in config.items():
        if name.startswith("driver."):
            continue
        *tables, key = name.split(".")
        place = tree
        for table in tables:
            place = place.setdefault(table, {})
        place[key] = json.loads(value) if name in _JSON else value
    return Experiment.model_validate(tree)
