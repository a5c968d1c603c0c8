"""Scores that torchmetrics objects compute, and the states from which many clients' are merged.

A metric's state (counts, sums, or predictions and labels) of many clients merges to the state over
all their examples, as torchmetrics does it over processes. So the value over clients is exact where
a mean of their values would not be: macro F1, AUROC, RMSE, R2.
"""

from __future__ import annotations

import copy
import functools
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from flsimulation.errors import ClientError, describe_error

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""A metric's states by name; those of a list are ``name[0]``, ``name[1]``, ..."""

_NOT_DEFINED = re.compile(r"meaningless|undefined")  # torchmetrics warns so, and returns a number


class MetricState(NamedTuple):
    """What a logged metric has gathered over one client's examples."""

    path: str
    """Of the metric in the module, as in ``named_modules``."""
    arrays: Arrays


class Measured(dict[str, float]):
    """A client's scores by name, and what is behind those of metric objects.

    A score that is not defined for the client's examples is NaN.
    """

    def __init__(
        self,
        scores: Mapping[str, float],
        states: Mapping[str, MetricState] | None = None,
        why_not: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(scores)
        self.states = dict(states or {})
        """By name of the score."""
        self.why_not = dict(why_not or {})
        """Why a score is not defined, by its name."""


class Value(NamedTuple):
    """A metric's value, NaN where it is not defined, and why it is not."""

    number: float
    why_not: str = ""


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
        self._parts = [part for part in module.modules() if isinstance(part, Metric)]
        self._logged: dict[str, Metric] = {}
        self._done: dict[str, tuple[Value, MetricState | None]] = {}

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
        metric = next((part for part in self._parts if _last_value(part) is value), None)
        if metric is None:
            return False
        self._done[name] = self._measured(name, metric)
        return True

    def clear(self) -> None:
        """Forget what was logged, and reset the metrics that can be."""
        self._logged.clear()
        self._done.clear()
        for metric in self.resettable:
            if metric.update_called:
                metric.reset()

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
        again = _last_value(metric) is not None
        value = merged(metric, [arrays], name) if again else value_of(metric, name)
        return value, MetricState(self._paths[id(metric)], arrays)


def value_of(metric: Metric, name: str, counts: Any = None) -> Value:
    """A metric's value over all that it was updated with.

    Parameters
    ----------
    metric : Metric
        The metric.
    name : str
        Of the score, for errors.
    counts : Tensor, optional
        Of a curve over thresholds; by default the metric's own.

    Raises
    ------
    ClientError
        If it computes several numbers.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            value: Any = metric.compute()
        except Exception as error:  # R2 of one example
            return Value(math.nan, str(error).strip().partition("\n")[0] or describe_error(error))
    if not isinstance(value, int | float) and not (
        isinstance(value, Tensor) and value.numel() == 1
    ):
        raise several_numbers(name, value)
    texts = [str(one.message) for one in warned]
    if counts is None:
        counts = metric.metric_state.get("confmat")
    why_not = next(filter(_NOT_DEFINED.search, texts), None) or _one_class(metric, counts)
    if why_not is not None:
        return Value(math.nan, re.split(r"[,.;]", why_not)[0])
    number = float(value)
    return Value(number, "NaN" if math.isnan(number) else "")


def several_numbers(name: str, value: Any) -> ClientError:
    """The error of a name under which not one number is logged."""
    has = f"{value.numel()} values" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    return ClientError("error", f"the module logs {has} as {name!r}; log one number for each name")


def arrays_of(metric: Metric) -> Arrays | None:
    """A metric's states and those of its parts, not copied; None if it may not be merged."""
    found: dict[str, np.ndarray] = {}
    for prefix, part in _parts(metric):
        if not part.sync_on_compute:
            return None
        for name, state in part.metric_state.items():
            if isinstance(state, Tensor):
                found[prefix + name] = _array(state)
            else:
                found |= {f"{prefix}{name}[{i}]": _array(own) for i, own in enumerate(state)}
    return found


def merged(metric: Metric, clients: Sequence[Arrays], name: str) -> Value:
    """A metric's value over the examples of several clients.

    Parameters
    ----------
    metric : Metric
        A metric like the clients'; not changed.
    clients : sequence of Arrays
        Their states, at least one.
    name : str
        Of the score, for errors.

    Raises
    ------
    ClientError
        If it computes several numbers.
    """
    metric = copy.deepcopy(metric).cpu()
    metric.reset()
    for prefix, part in _parts(metric):
        states = [list(_of_clients(prefix + own, clients)) for own in part.metric_state]
        for own, state in part.metric_state.items():
            if isinstance(state, list):  # so that each state is asked for once
                setattr(part, own, [torch.empty(0)])
        part.dist_sync_fn = _Gathered(states)
        part.distributed_available_fn = lambda: True
    counts = [torch.from_numpy(arrays["confmat"]) for arrays in clients if "confmat" in arrays]
    return value_of(metric, name, sum(counts) if counts else None)


class _Gathered:
    """Stands in for the exchange between processes: returns all clients' tensors of each state."""

    def __init__(self, states: Iterable[list[Tensor]]) -> None:
        self._states = iter(states)

    def __call__(self, _: Tensor, group: Any = None) -> list[Tensor]:  # noqa: ARG002 - its name
        return next(self._states)


def _of_clients(name: str, clients: Sequence[Arrays]) -> Iterator[Tensor]:
    of_list = re.compile(re.escape(name) + r"\[\d+\]")
    for arrays in clients:
        if name in arrays:
            yield torch.from_numpy(np.asarray(arrays[name]))
        else:
            yield from (
                torch.from_numpy(np.asarray(a)) for n, a in arrays.items() if of_list.fullmatch(n)
            )


def _parts(metric: Metric) -> Iterator[tuple[str, Metric]]:
    """A metric and those in it, each with the prefix of its states' names."""
    for path, part in metric.named_modules():
        if isinstance(part, Metric):
            yield f"{path}." if path else "", part


def _array(state: Tensor) -> np.ndarray:
    state = state.detach().cpu()
    return (state.float() if state.dtype == torch.bfloat16 else state).numpy()


def _one_class(metric: Metric, counts: Any) -> str | None:
    """Why a curve over thresholds is not defined, of which torchmetrics does not warn."""
    if getattr(metric, "thresholds", None) is None or not isinstance(counts, Tensor):
        return None
    negatives, positives = counts[0].sum(-1).unbind(-1)
    if not bool((positives > 0).all()):
        return "No positive samples in targets"
    if "AUROC" in type(metric).__name__ and not bool((negatives > 0).all()):
        return "No negative samples in targets"
    return None


def _last_value(metric: Metric) -> Any:
    return metric._computed


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)
