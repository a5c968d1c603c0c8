"""Compares two runs of an experiment, round by round: cohorts, scores and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from flwr.app import ArrayRecord

from flsimulation.events import Checkpoint, Event, RoundFinished, RunStarted, Scores
from flsimulation.studies.apart import Model, arrays_apart, scores_apart, worst

TOLERANCE = 1e-6
"""Largest relative difference of scores and weights in any round, with the same engine."""
BETWEEN_ENGINES = 1e-5
"""The same between two engines, where each round begins with the same global model."""


@dataclass
class Observed:
    """The parts of a run that must be the same in every runtime."""

    started: RunStarted | None = None
    rounds: list[RoundFinished] = field(default_factory=list)
    models: dict[int, Model] = field(default_factory=dict)
    """The global model after each round."""

    def __call__(self, event: Event) -> None:
        """Keep an event's content."""
        if isinstance(event, RunStarted):
            self.started = event
        elif isinstance(event, RoundFinished):
            self.rounds.append(event)
        elif isinstance(event, Checkpoint):
            self.models[event.round] = arrays_of(event.arrays)


@dataclass(frozen=True)
class RoundComparison:
    """Differences between two runs in one round."""

    round: int
    same_cohort: bool
    scores: float
    """Largest relative difference of any score."""
    weights: float
    """Largest relative difference of any array of the global models: ``|a - b| / |a|``."""
    identical: bool
    """Whether the global models are the same bit for bit."""
    tolerance: float = TOLERANCE
    worst: str = ""
    """Name of the array that differs most."""

    @property
    def agrees(self) -> bool:
        """Whether the round is the same up to rounding."""
        return self.same_cohort and max(self.scores, self.weights) <= self.tolerance


Probe: TypeAlias = Callable[[int], list["Observed"]]
"""Repeats a round from starts that differ by roundings."""


def compare(
    here: Observed,
    there: Observed,
    compared: Callable[[RoundComparison], None] | None = None,
    tolerance: float = TOLERANCE,
    probe: Probe | None = None,
) -> list[str]:
    """One line per difference between two runs; empty if they agree within the tolerance.

    A round that differs is compared once more with what roundings make of it, if ``probe`` tells.
    """
    differences = _differing_data(here.started, there.started)
    if len(here.rounds) != len(there.rounds):
        differences.append(
            f"{len(here.rounds)} rounds in one process, {len(there.rounds)} in the other runtime"
        )
    for one, other in zip(here.rounds, there.rounds, strict=False):
        comparison = _compare_round(one, other, here.models, there.models, tolerance)
        if probe is not None and comparison.same_cohort and not comparison.agrees:
            noise = _noise(probe(one.round), one.round)
            comparison = _compare_round(one, other, here.models, there.models, tolerance, noise)
        if compared is not None:
            compared(comparison)
        if not comparison.same_cohort:
            differences.append(f"round {one.round}: cohort {one.cohort} and {other.cohort}")
        elif not comparison.agrees:
            differences.append(
                f"round {one.round}: scores differ by {comparison.scores:.1e}, weights by "
                f"{comparison.weights:.1e}{_named(comparison)}; the tolerance is {tolerance:.0e}"
            )
    return differences


def arrays_of(record: ArrayRecord) -> Model:
    """A model as NumPy arrays, copied."""
    return {name: np.array(array.numpy()) for name, array in record.items()}


def _differing_data(one: RunStarted | None, other: RunStarted | None) -> list[str]:
    """One line with what differs in the data and models of two runs; empty if nothing does."""
    if one is None or other is None:
        which = "one process" if one is None else "the other runtime"
        return [f"the run in {which} did not report its data; run flsim verify again"]
    names = {
        "data_digest": "the data set",
        "histogram": "the clients' partitions",
        "train_examples": "the number of training examples",
        "parameters": "the model's number of parameters",
    }
    parts = [text for name, text in names.items() if getattr(one, name) != getattr(other, name)]
    return [f"the two runtimes do not hold the same data: {', '.join(parts)}"] if parts else []


def _named(comparison: RoundComparison) -> str:
    return f" ({comparison.worst})" if comparison.worst and comparison.weights else ""


@dataclass(frozen=True)
class _Noise:
    """What roundings of a round's start make of its results."""

    weights: Model = field(default_factory=dict)
    central: Scores = field(default_factory=dict)
    federated: Scores = field(default_factory=dict)


def _noise(probed: list[Observed], round: int) -> _Noise:
    """The largest differences between a round and the same from starts that differ by roundings."""
    first, *others = probed

    def of(scores: Callable[[RoundFinished], Scores | None]) -> Scores:
        own = scores(first.rounds[0]) or {}
        moved = [scores(other.rounds[0]) or {} for other in others]
        return {n: max(abs(m.get(n, v) - v) for m in moved) for n, v in own.items()}

    with np.errstate(invalid="ignore"):  # of infinities that are the same
        weights = {
            name: np.max([np.abs(other.models[round][name] - value) for other in others], axis=0)
            for name, value in first.models[round].items()
            if value.dtype.kind == "f"
        }
    return _Noise(weights, of(lambda r: r.central), of(lambda r: r.federated))


def _compare_round(
    one: RoundFinished,
    other: RoundFinished,
    ours: Mapping[int, Model],
    theirs: Mapping[int, Model],
    tolerance: float,
    noise: _Noise | None = None,
) -> RoundComparison:
    noise = noise or _Noise()
    scores = max(
        scores_apart(one.central, other.central, noise.central),
        scores_apart(one.federated, other.federated, noise.federated),
    )
    apart = arrays_apart(
        *(ours.get(one.round), theirs.get(other.round), tolerance),
        start=ours.get(one.round - 1),
        noise=noise.weights,
    )
    name, weights = worst(apart)
    return RoundComparison(
        round=one.round,
        same_cohort=one.cohort == other.cohort,
        scores=scores,
        weights=weights,
        identical=one.weights_sha256 == other.weights_sha256,
        tolerance=tolerance,
        worst=name,
    )
