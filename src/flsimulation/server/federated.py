"""The scores of a global model over the clients that evaluated it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from flsimulation.errors import RunError, describe_error
from flsimulation.events import BOOKKEEPING, Scores
from flsimulation.server.aggregation import means_over_some
from flsimulation.server.notices import Notices
from flsimulation.server.replies import Replies
from flsimulation.training.measured import Value

Merge: TypeAlias = Callable[[Sequence[ArrayRecord]], Mapping[str, Value]]
"""Computes the metrics over the examples of several clients from their states."""


def merge_none(_: Sequence[ArrayRecord]) -> Mapping[str, Value]:
    """Merge nothing: the module has no metric objects."""
    return {}


def federated_scores(
    strategy: Strategy, evaluated: Replies, merge: Merge, notices: Notices
) -> Scores | None:
    """The clients' scores as one: metric objects over all their examples, numbers as means.

    Numbers are averaged by the strategy; those that only some clients have are averaged over these,
    weighted by examples. A score that no client has is left out.

    Raises
    ------
    RunError
        If the strategy fails.
    """
    if not evaluated.cohort:
        return None
    number = evaluated.round
    try:
        found = scores_in(strategy.aggregate_evaluate(number, evaluated.results()))
    except Exception as error:
        raise RunError(f"round {number}: evaluation: {describe_error(error)}") from error
    merged = merge([states for _, states in sorted(evaluated.states.items())])
    notices.left_out(evaluated, merged)
    some = means_over_some(evaluated)
    if found is None and not some and not merged:
        return None
    exact = {name: value.number for name, value in merged.items()}
    scores = {**(found or {}), **some, **exact}
    return {name: value for name, value in scores.items() if not math.isnan(exact.get(name, 0.0))}


def scores_in(metrics: MetricRecord | None) -> Scores | None:
    """The strategy's aggregated metrics, without those whose average has no meaning."""
    if metrics is None:
        return None
    return {
        name: float(value)
        for name, value in metrics.items()
        if name not in BOOKKEEPING and not isinstance(value, list)
    }
