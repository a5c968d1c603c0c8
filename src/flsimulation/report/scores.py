"""What the report shows of a run's numbers, before they are drawn or written down."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from flsimulation.events import BOOKKEEPING, main_metrics, scores_of
from flsimulation.rundir import JsonObject, RunRecord, look, number

PHASES = ("train", "aggregate", "evaluate", "other")
"""Where a round's time goes; ``other`` is the rest of its total."""


@dataclass(frozen=True)
class Spread:
    """How unevenly the final model serves the clients.

    Mean, deviation and the worst tenth are over clients, each counting once, as in Li et al.,
    "Fair Resource Allocation in Federated Learning" (ICLR 2020), table 1.
    """

    metric: str
    """``accuracy``, or ``loss`` where the model reports no accuracy."""
    round: int
    """The round whose model was evaluated."""
    ranked: tuple[tuple[int, float], ...]
    """Partition and value, the worst first; at least one."""

    @property
    def values(self) -> tuple[float, ...]:
        """The values alone, the worst first."""
        return tuple(value for _, value in self.ranked)

    @property
    def mean(self) -> float:
        """Mean over the clients."""
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Standard deviation over the clients (of the population)."""
        mean, values = self.mean, self.values  # each is computed whenever it is requested
        return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))

    @property
    def worst_tenth(self) -> float:
        """Mean of the worst tenth of the clients, rounded up to whole clients."""
        worst = self.values[: math.ceil(len(self.values) / 10)]
        return math.fsum(worst) / len(worst)


def client_spread(run: RunRecord) -> Spread | None:
    """Rank clients by accuracy (or else loss) over clients; None where none was evaluated."""
    for metric, sign in (("accuracy", 1), ("loss", -1)):
        values = {record["partition"]: number(record, metric) for record in run.evaluated}
        found = [(partition, value) for partition, value in values.items() if value is not None]
        if found:
            found.sort(key=lambda item: (sign * item[1], item[0]))
            return Spread(metric, run.evaluated[0]["round"], tuple(found))
    return None


def curve(run: RunRecord, source: str, metric: str) -> tuple[list[int], list[float]]:
    """Give the rounds in which ``source`` was evaluated, and its metric: NaN where it was not finite."""
    turns, values = [], []
    for record in run.rounds:
        if look(record, source) is not None:
            value = number(record, source, metric)
            turns.append(int(record["round"]))
            values.append(math.nan if value is None else value)
    return turns, values


def metric_names(run: RunRecord, source: str) -> list[str]:
    """Names of what ``source`` measured, ``loss`` and ``accuracy`` first."""
    found = {name for record in run.rounds for name in look(record, source) or {}}
    first = [name for name in ("loss", "accuracy") if name in found]
    return first + sorted(found - BOOKKEEPING - set(first))


def own_metric(run: RunRecord) -> str | None:
    """The module's first own metric, where it reports no accuracy; None without one."""
    scores = next(filter(None, map(scores_of, run.rounds)), {})
    names = main_metrics(scores)
    return next((name for name in names if name not in ("loss", "accuracy")), None)


def phase_seconds(record: JsonObject) -> dict[str, float]:
    """Seconds of a round by phase."""
    known = {phase: number(record, "seconds", phase) or 0.0 for phase in PHASES[:-1]}
    total = number(record, "seconds", "total") or 0.0
    return known | {"other": max(0.0, total - sum(known.values()))}


def failure_counts(run: RunRecord) -> dict[int, Counter[str]]:
    """Failures by round and reason, for the rounds that have any.

    rounds.jsonl lacks the round that stopped the run and the final evaluation, clients.jsonl may
    be cut short or missing: the larger count is the right one.
    """
    counts: dict[int, Counter[str]] = {}
    for record in run.failures:
        counts.setdefault(record["round"], Counter())[str(record["reason"])] += 1
    for record in run.rounds:
        for reason in record.get("failures") or ():
            if count := number(record, "failures", reason):
                row = counts.setdefault(record["round"], Counter())
                row[reason] = max(row[reason], int(count))
    return dict(sorted(counts.items()))
