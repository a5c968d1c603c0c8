"""States of metric objects as Flower's records, and their merging over clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord
from torch import Tensor, nn
from torchmetrics import Metric

from flsimulation.errors import ClientError, describe_error, one_line
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.messages.metric_states import Forms, StateForm
from flsimulation.training.measured import (
    Arrays,
    Measured,
    MetricState,
    Value,
    merged,
    states_of,
)

_BETWEEN = "\n"  # score, path of the metric, state


def record_of_states(scores: Mapping[str, float]) -> ArrayRecord | None:
    """The states behind a client's scores, not copied; None without any."""
    states = scores.states if isinstance(scores, Measured) else None
    if not states:
        return None
    return joined(
        {
            _BETWEEN.join((score, path, name)): HeldArray(array)
            for score, (path, arrays) in states.items()
            for name, array in arrays.items()
        }
    )


def states_in(record: ArrayRecord) -> dict[str, MetricState]:
    """The states in a record, by name of the score."""
    found: dict[str, tuple[str, dict[str, object]]] = {}
    for key, array in record.items():
        score, path, name = key.split(_BETWEEN)
        found.setdefault(score, (path, {}))[1][name] = array.numpy()
    return {score: MetricState(path, arrays) for score, (path, arrays) in found.items()}  # type: ignore[arg-type]


def forms_of(module: nn.Module) -> Forms:
    """The form of the states that clients of a module send, by its own metric objects."""
    return {
        path: {name: _form(state) for name, state in states_of(metric).items()}
        for path, metric in module.named_modules()
        if isinstance(metric, Metric)
    }


def _form(state: Tensor | list[Tensor]) -> StateForm:
    if isinstance(state, list):
        return StateForm(None, "")
    kind = "f" if state.is_floating_point() else state.cpu().numpy().dtype.kind
    return StateForm(tuple(state.shape), kind)


def merged_scores(module: nn.Module, clients: Sequence[ArrayRecord]) -> dict[str, Value]:
    """The scores over the examples of all clients, by name.

    Parameters
    ----------
    module : Module
        Has metrics as the clients' have; not changed.
    clients : sequence of ArrayRecord
        Each client's states, by `record_of_states`.
    """
    states: dict[str, list[Arrays]] = {}
    paths: dict[str, str] = {}
    for record in clients:
        for score, (path, arrays) in states_in(record).items():
            states.setdefault(score, []).append(arrays)
            paths[score] = path
    return {score: _merged(module, paths[score], own, score) for score, own in states.items()}


def _merged(module: nn.Module, path: str, clients: Sequence[Arrays], score: str) -> Value:
    metric = dict(module.named_modules()).get(path)
    if not isinstance(metric, Metric):
        return Value(math.nan, f"the server's module has no metric {path}")
    try:
        return merged(metric, clients, score)
    except ClientError as error:
        return Value(math.nan, str(error))
    except Exception as error:  # states that do not fit each other: clients may send anything
        return Value(math.nan, one_line(describe_error(error)))
