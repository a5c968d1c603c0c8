"""Measures that papers report, read from a run directory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flsimulation.rundir import RunRecord, number


@dataclass(frozen=True)
class Measure:
    """A figure of a run."""

    title: str
    read: Callable[[RunRecord, int], float | None]
    """Reads it from a run directory; scores are means over the given number of last rounds. None if
    the run does not have it."""
    shown: Callable[[float], str]
    least: bool = False
    """Whether lower is better."""


def rounds_to(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """The number of rounds after which a learning curve reaches the target.

    The curve is made monotone (each value is the best so far) and interpolated linearly between its
    points, as in McMahan et al. (2017), section 3.

    Parameters
    ----------
    curve : sequence of (int, float)
        Rounds, ascending, and the accuracy after them.
    target : float
        The accuracy to reach.

    Returns
    -------
    float or None
        Rounds; None if the curve stays below the target.
    """
    before: tuple[int, float] | None = None
    for round, value in curve:
        if value >= target:
            if before is None:
                return float(round)
            gained, lacked = value - before[1], target - before[1]
            return before[0] + (round - before[0]) * lacked / gained
        before = round, max(value, before[1] if before else value)
    return None


def _rounds(run: RunRecord, last: int) -> float | None:  # noqa: ARG001 - it uses the whole curve
    target = run.experiment().evaluate.target_accuracy
    return rounds_to(list(_central(run, "accuracy").items()), target)


def _of_test(name: str) -> Callable[[RunRecord, int], float | None]:
    """The mean of a score on the test set over the last rounds that have one."""

    def measure(run: RunRecord, last: int) -> float | None:
        found = list(_central(run, name).values())[-last:]
        return statistics.fmean(found) if found else None

    return measure


def _after(round: int) -> Callable[[RunRecord, int], float | None]:
    return lambda run, last: _central(run, "accuracy").get(round)  # noqa: ARG005


def _central(run: RunRecord, name: str) -> dict[int, float]:
    """A score on the test set by round, ascending."""
    found = {line["round"]: number(line, "central", name) for line in run.rounds}
    return {round: value for round, value in found.items() if value is not None}


def _clients(run: RunRecord) -> list[float]:
    """The clients' accuracies under the final model, ascending."""
    final = (line for line in run.evaluated if line["phase"] == "final")
    return sorted(a for line in final if (a := number(line, "accuracy")) is not None)


def _of_clients(read: Callable[[list[float]], float]) -> Callable[[RunRecord, int], float | None]:
    def measure(run: RunRecord, last: int) -> float | None:  # noqa: ARG001 - it uses the final model
        found = _clients(run)
        return read(found) if found else None

    return measure


def _tenth(found: Sequence[float]) -> int:
    return max(1, len(found) // 10)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


_MEASURES = {
    "rounds": Measure("rounds", _rounds, lambda value: f"{value:.0f}", least=True),
    "accuracy": Measure("test accuracy", _of_test("accuracy"), _percent),
    "clients-mean": Measure("mean of the clients", _of_clients(statistics.fmean), _percent),
    "clients-worst": Measure(
        "worst 10 %", _of_clients(lambda found: statistics.fmean(found[: _tenth(found)])), _percent
    ),
    "clients-best": Measure(
        "best 10 %", _of_clients(lambda found: statistics.fmean(found[-_tenth(found) :])), _percent
    ),
    "clients-variance": Measure(
        "variance of the clients, %²",
        _of_clients(statistics.pvariance),
        lambda value: f"{1e4 * value:.0f}",
        least=True,
    ),
}


def measure_of(name: str) -> Measure:
    """The measure with a name, as used in a paper's file.

    ``rounds`` to the target accuracy; ``accuracy`` and ``test-NAME``, scores on the test set;
    ``accuracy@N``, after round N; ``clients-mean``, ``-worst``, ``-best`` and ``-variance`` of the
    clients' accuracies under the final model.

    Raises
    ------
    ValueError
        If there is no such measure.
    """
    if name in _MEASURES:
        return _MEASURES[name]
    if (score := name.removeprefix("test-")) != name and score:
        return Measure(f"test {score}", _of_test(score), _percent)
    if (round := name.removeprefix("accuracy@")) != name and round.isdecimal():
        return Measure(f"test accuracy, round {round}", _after(int(round)), _percent)
    known = ", ".join([*_MEASURES, "test-NAME", "accuracy@ROUND"])
    raise ValueError(f"{name!r} is not a measure; choose from {known}")
