"""What papers report of a run, read from its run directory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flsimulation.experiment import load_run_experiment
from flsimulation.telemetry.jsonlines import read_lines


@dataclass(frozen=True)
class Measure:
    """A figure of a run."""

    title: str
    read: Callable[[Path], float | None]
    """From a run directory; None where the run does not give it."""
    shown: Callable[[float], str]
    least: bool = False
    """Whether less is better."""


def rounds_to(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """Where a learning curve crosses the target.

    The curve is made monotone (each value is the best so far) and read between its points by
    linear interpolation, as McMahan et al. (2017), section 3, do.

    Parameters
    ----------
    curve : sequence of (int, float)
        Rounds, ascending, and the accuracy after them.
    target : float
        The accuracy to reach.

    Returns
    -------
    float or None
        Rounds; None where the curve stays below.
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


def _rounds(run_dir: Path) -> float | None:
    target = load_run_experiment(run_dir).evaluate.target_accuracy
    return rounds_to(_central(run_dir), target)


def _accuracy(run_dir: Path) -> float | None:
    curve = _central(run_dir)
    return curve[-1][1] if curve else None


def _central(run_dir: Path) -> list[tuple[int, float]]:
    """Rounds and the test set's accuracy after them."""
    lines = read_lines(run_dir / "rounds.jsonl")
    return [(line["round"], line["central"]["accuracy"]) for line in lines if line["central"]]


def _clients(run_dir: Path) -> list[float]:
    """The clients' accuracies under the final model, ascending."""
    lines = read_lines(run_dir / "clients.jsonl")
    return sorted(
        line["accuracy"] for line in lines if line["phase"] == "final" and "accuracy" in line
    )


def _of_clients(read: Callable[[list[float]], float]) -> Callable[[Path], float | None]:
    def measure(run_dir: Path) -> float | None:
        found = _clients(run_dir)
        return read(found) if found else None

    return measure


def _tenth(found: Sequence[float]) -> int:
    return max(1, len(found) // 10)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


MEASURES = {
    "rounds": Measure("rounds", _rounds, lambda value: f"{value:.0f}", least=True),
    "accuracy": Measure("test accuracy", _accuracy, _percent),
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
"""By the name in a paper's file."""
