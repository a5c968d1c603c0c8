"""Compares runtimes, or engines: partitions, cohorts, scores and weights must agree.

Two runtimes use the same engine, so every round must agree up to rounding: they differ in how the
messages travel, and perhaps in the number of threads. The stacked and the sequential engine are
compared in one process.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord

from flsimulation.client.workspace import Workspace
from flsimulation.events import Checkpoint, Event, RoundFinished, RunStarted, Scores
from flsimulation.experiment import Experiment
from flsimulation.runtimes import Federate, Runtime
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.server.app import Start

TOLERANCE = 1e-6
"""Largest relative difference of scores and weights in any round, with the same engine."""
BETWEEN_ENGINES = 1e-5
"""The same between two engines, where each round begins with the same global model."""

Model = Mapping[str, np.ndarray]


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
    """Relative difference of the global models: ``|a - b| / |a|`` over all weights."""
    identical: bool
    """Whether the global models are the same bit for bit."""
    tolerance: float = TOLERANCE

    @property
    def agrees(self) -> bool:
        """Whether the round is the same up to rounding."""
        return self.same_cohort and max(self.scores, self.weights) <= self.tolerance


def verify(there: Runtime, compared: Callable[[RoundComparison], None] | None = None) -> list[str]:
    """Run an experiment in one process and in another runtime; returns one line per difference.

    Parameters
    ----------
    there : Runtime
        Opened for the experiment.
    compared : callable, optional
        Called with each round's comparison.

    Raises
    ------
    InputError
        If the experiment cannot be run.
    RunError
        If one of the two runs could not continue.
    """
    if there.federate is not None:
        return compare(*_round_by_round(there.experiment, there.federate), compared)
    here, other = Observed(), Observed()
    run_in_process(_with_one_engine(there.experiment), [here])
    there.run(sinks=[other], checkpoints=True)
    return compare(here, other, compared)


def _round_by_round(experiment: Experiment, federate: Federate) -> tuple[Observed, Observed]:
    """A run in one process, and each of its rounds again in the other runtime.

    Each repeated round begins with the same model as the original: the other runtime averages the
    clients' models in different groups, and that rounding error would grow over many rounds.
    """
    space = Workspace.load(_changed(experiment, experiment.train.engine))
    here, starts = _run_here(space)
    return here, _each_again(here, starts, space, federate)


def _with_one_engine(experiment: Experiment) -> Experiment:
    """The experiment with the engine that a network's clients use, unless it requests another."""
    if experiment.train.engine != "auto":
        return experiment
    train = experiment.train.model_copy(update={"engine": "sequential"})
    return experiment.model_copy(update={"train": train})


def verify_engines(
    experiment: Experiment, compared: Callable[[RoundComparison], None] | None = None
) -> list[str]:
    """Run an experiment stacked, and each of its rounds again sequentially; returns differences.

    Every sequential round begins with the same model and strategy state as the stacked one: rounding
    errors would grow over many rounds, which is not a difference of the engines.

    Parameters
    ----------
    experiment : Experiment
        It is run in this process; its ``runtime`` is ignored.
    compared : callable, optional
        Called with each round's comparison.

    Raises
    ------
    InputError
        If the experiment cannot be run, or its model cannot be trained stacked.
    RunError
        If a run could not continue.
    """
    space = Workspace.load(_changed(experiment, "stacked"))
    here, starts = _run_here(space)
    again = space.under(_changed(experiment, "sequential"))
    there = _each_again(here, starts, again, run_in_process)
    return compare(here, there, compared, BETWEEN_ENGINES)


def _run_here(space: Workspace) -> tuple[Observed, dict[int, Start]]:
    """A run in this process, and the start of the next round, by completed round."""
    record, starts = Observed(), dict[int, Start]()

    def keep(event: Event) -> None:
        if isinstance(event, Checkpoint):
            state = copy.deepcopy(vars(event.strategy))
            starts[event.round] = Start(event.round, event.arrays, state)

    run_in_process(space.experiment, [record, keep], space)
    return record, starts


def _each_again(
    here: Observed, starts: Mapping[int, Start], space: Workspace, federate: Federate
) -> Observed:
    """Repeat every round of a run, each from its own start."""
    there = Observed()
    for round in here.rounds:
        strategy = space.experiment.strategy.model_copy(update={"rounds": round.round})
        spec = space.experiment.model_copy(update={"strategy": strategy})
        short, record = dataclasses.replace(space, experiment=spec), Observed()
        federate(spec, [record], short, starts.get(round.round - 1))
        (done,) = record.rounds
        if round.central is None:  # the last round of a run is always evaluated
            done = dataclasses.replace(done, central=None)
        there.started = record.started
        there.rounds.append(done)
        there.models[done.round] = record.models[done.round]  # not the one that it began with
    return there


def _changed(experiment: Experiment, engine: str) -> Experiment:
    """The experiment with another engine, and without the evaluation by clients."""
    train = experiment.train.model_copy(update={"engine": engine})
    evaluate = experiment.evaluate.model_copy(update={"clients": 0})
    return experiment.model_copy(update={"train": train, "evaluate": evaluate})


def compare(
    here: Observed,
    there: Observed,
    compared: Callable[[RoundComparison], None] | None = None,
    tolerance: float = TOLERANCE,
) -> list[str]:
    """One line per difference between two runs; empty if they agree within the tolerance."""
    differences = _differing_data(here.started, there.started)
    if len(here.rounds) != len(there.rounds):
        differences.append(
            f"{len(here.rounds)} rounds in one process, {len(there.rounds)} in the other runtime"
        )
    for one, other in zip(here.rounds, there.rounds, strict=False):
        comparison = _compare_round(one, other, here.models, there.models, tolerance)
        if compared is not None:
            compared(comparison)
        if not comparison.same_cohort:
            differences.append(f"round {one.round}: cohort {one.cohort} and {other.cohort}")
        elif not comparison.agrees:
            differences.append(
                f"round {one.round}: scores differ by {comparison.scores:.1e}, weights by "
                f"{comparison.weights:.1e}; the tolerance is {tolerance:.0e}"
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


def _compare_round(
    one: RoundFinished,
    other: RoundFinished,
    ours: Mapping[int, Model],
    theirs: Mapping[int, Model],
    tolerance: float,
) -> RoundComparison:
    scores = max(
        _difference_of_scores(one.central, other.central),
        _difference_of_scores(one.federated, other.federated),
    )
    weights = _difference_of_models(ours.get(one.round), theirs.get(other.round))
    return RoundComparison(
        round=one.round,
        same_cohort=one.cohort == other.cohort,
        scores=scores,
        weights=weights,
        identical=one.weights_sha256 == other.weights_sha256,
        tolerance=tolerance,
    )


def _difference_of_scores(one: Scores | None, other: Scores | None) -> float:
    one, other = one or {}, other or {}
    if one.keys() != other.keys():
        return float("inf")
    return max((_relative(one[name], other[name]) for name in one), default=0.0)


def _relative(one: float, other: float) -> float:
    if one == other or (np.isnan(one) and np.isnan(other)):
        return 0.0
    return float(abs(one - other) / max(abs(one), abs(other)))


def _difference_of_models(one: Model | None, other: Model | None) -> float:
    if one is None or other is None or one.keys() != other.keys():
        return float("inf")
    if any(one[name].shape != other[name].shape for name in one):
        return float("inf")
    apart = sum(np.sum((one[n].astype(float) - other[n].astype(float)) ** 2) for n in one)
    size = sum(np.sum(one[n].astype(float) ** 2) for n in one)
    return float(np.sqrt(apart / size)) if size else float(apart > 0)
