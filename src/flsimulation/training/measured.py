"""Scores that torchmetrics objects compute, and the states from which many clients' are merged.

A metric's state (counts, sums, or predictions and labels) of many clients merges to the state over
all their examples, as torchmetrics does it over processes. So the value over clients is exact where
a mean of their values would not be: macro F1, AUROC, RMSE, R2.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from flsimulation.errors import ClientError, describe_error

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""A metric's states by name; those of a list are ``name[0]``, ``name[1]``, ..."""

_OWN = "own"  # attribute of a compute that returns NaN, for the one that raises
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
            value: Any = getattr(metric.compute, _OWN, metric.compute)()
        except Exception as error:  # R2 of one example
            line = str(error).strip().partition("\n")[0].rstrip(".")
            return Value(math.nan, line or describe_error(error))
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


def keep_undefined(module: nn.Module) -> None:
    """Have a module's metrics compute NaN where they would raise that they are not defined.

    A metric that is called computes its value over the batch, and raises for an R2 of one example.
    """
    for metric in module.modules():
        if isinstance(metric, Metric) and not hasattr(metric.compute, _OWN):
            metric.compute = _or_nan(metric.compute)  # type: ignore[method-assign]


def _or_nan(compute: Callable[[], Any]) -> Callable[[], Any]:
    def computed() -> Any:
        try:
            return compute()
        except ValueError:  # vmap's refusals are none
            return torch.tensor(math.nan)

    setattr(computed, _OWN, compute)
    return computed


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


def states_of(metric: Metric) -> dict[str, Tensor | list[Tensor]]:
    """The states of a metric and of its parts before an update, by name; not changed."""
    own = copy.deepcopy(metric)
    own.reset()
    parts = _parts(own)
    return {prefix + n: state for prefix, part in parts for n, state in part.metric_state.items()}


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
        states = [
            [torch.from_numpy(np.array(a)) for own in clients for a in of_state(prefix + name, own)]
            for name in part.metric_state
        ]
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


def of_state(name: str, arrays: Arrays) -> list[np.ndarray]:
    """A state's arrays: one, or those of its list."""
    if name in arrays:
        return [arrays[name]]
    of_list = re.compile(re.escape(name) + r"\[\d+\]")
    return [array for own, array in arrays.items() if of_list.fullmatch(own)]


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


def last_value(metric: Metric) -> Any:
    """What its ``compute`` returned since it was updated; None before."""
    return metric._computed
