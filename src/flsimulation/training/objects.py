"""The metric objects of a module that is evaluated."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from flsimulation.errors import ClientError
from flsimulation.training.measured import (
    Arrays,
    Measured,
    MetricState,
    Value,
    arrays_of,
    keep_undefined,
    last_value,
    merged,
    of_state,
    value_of,
)


class MetricObjects:
    """The metric objects that a module logs in one evaluation.

    Parameters
    ----------
    module : Module
        Has the metrics as attributes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._paths = {
            id(part): path for path, part in module.named_modules() if isinstance(part, Metric)
        }
        keep_undefined(module)
        self._parts = [part for part in module.modules() if isinstance(part, Metric)]
        self._logged: dict[str, Metric] = {}
        self._done: dict[str, tuple[Value, MetricState | None]] = {}
        self._has_begun = False

    @property
    def are_logged(self) -> bool:
        """Whether any was logged."""
        return bool(self._logged or self._done)

    @functools.cached_property
    def resettable(self) -> list[Metric]:
        """The module's metrics whose ``reset`` makes them as new: they have no parts."""
        return [metric for metric in self._parts if not any(True for _ in metric.children())]

    def log(self, name: str, metric: Metric) -> None:
        """Take in that a metric is logged under a name. Raises `ClientError`."""
        if id(metric) not in self._paths:
            raise ClientError(
                "error",
                f"the module logs {name!r}, a {type(metric).__name__} that is no attribute of it; "
                f"assign it in __init__ (self.{_identifier(name)} = ...)",
            )
        if self._logged.setdefault(name, metric) is not metric:
            raise ClientError("error", f"the module logs two metrics under {name!r}; name each")

    def computed(self, name: str, value: Any) -> bool:
        """Take in a value at an epoch's end, if a metric's ``compute`` has just returned it."""
        if not isinstance(value, Tensor):
            return False
        metric = next((part for part in self._parts if last_value(part) is value), None)
        if metric is None:
            return False
        self._done[name] = self._measured(name, metric)
        return True

    def clear(self) -> None:
        """Forget what was logged, and reset the metrics that can be."""
        self._logged.clear()
        self._done.clear()
        for metric in self.resettable:
            if metric.update_called or self._has_begun:
                metric.reset()
        self._has_begun = False

    def begin(self, like: Tensor) -> None:
        """Clear all, with states that depend on an input: only to such can vmap add in place."""
        self.clear()
        if not self.resettable:
            return
        self._has_begun = True
        zero = torch.zeros_like(like.flatten()[:1]).sum()
        for metric in self.resettable:
            for name, state in metric.metric_state.items():
                if isinstance(state, Tensor):
                    setattr(metric, name, state + zero.to(state.dtype))

    def states(self) -> dict[tuple[str, str], Tensor]:
        """States of the logged metrics, by name of the score and of the state.

        Raises
        ------
        ValueError
            If a metric cannot be made from its states.
        """
        found: dict[tuple[str, str], Tensor] = {}
        plain = {id(metric) for metric in self.resettable}
        for score, metric in self._logged.items():
            if (
                id(metric) not in plain
                or not metric.sync_on_compute
                or last_value(metric) is not None
            ):
                raise ValueError(f"{score} has more than its states")
            for name, state in metric.metric_state.items():
                if isinstance(state, Tensor):
                    found[score, name] = state
                else:
                    found |= {(score, f"{name}[{i}]"): own for i, own in enumerate(state)}
        return found

    def restored(self, scores: Mapping[str, float], states: Mapping[str, Arrays]) -> Measured:
        """What `measured` returns for a client whose logged metrics have these states."""
        for score, arrays in states.items():
            metric = self._logged[score]
            metric.reset()
            for name, state in metric.metric_state.items():
                own = [torch.from_numpy(array) for array in of_state(name, arrays)]
                setattr(metric, name, own if isinstance(state, list) else own[0])
        return self.measured(scores)

    def measured(self, scores: Mapping[str, float]) -> Measured:
        """These scores and, after them, those of the metrics. Raises `ClientError`."""
        found = self._done | {name: self._measured(name, m) for name, m in self._logged.items()}
        return Measured(
            {**scores, **{name: value.number for name, (value, _) in found.items()}},
            {name: state for name, (_, state) in found.items() if state is not None},
            {name: value.why_not for name, (value, _) in found.items() if value.why_not},
        )

    def _measured(self, name: str, metric: Metric) -> tuple[Value, MetricState | None]:
        arrays = arrays_of(metric)
        if arrays is None:
            return value_of(metric, name), None
        # a value that was computed before comes without the warning that it means nothing
        again = last_value(metric) is not None
        value = merged(metric, [arrays], name) if again else value_of(metric, name)
        return value, MetricState(self._paths[id(metric)], arrays)


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)
