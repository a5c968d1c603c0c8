"""Compares runtimes, or engines: partitions, cohorts, scores and weights must agree.

Two runtimes use the same engine, so every round must agree up to rounding: they differ in how the
messages travel, and perhaps in the number of threads. Two engines are compared
in one process.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from flwr.app import Array, ArrayRecord

from flsimulation.client.workspace import Workspace
from flsimulation.errors import InputError
from flsimulation.events import Checkpoint, Event, RoundFinished
from flsimulation.experiment import Experiment
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.messages.state_dicts import record_of
from flsimulation.privacy.ledger import with_noise
from flsimulation.runtimes import Federate, Runtime
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.server.app import Start
from flsimulation.studies.agreement import (
    BETWEEN_ENGINES,
    Observed,
    Probe,
    RoundComparison,
    arrays_of,
    compare,
)
from flsimulation.studies.apart import Model

__all__ = ["Observed", "RoundComparison", "compare", "verify", "verify_engines"]


_PROBES = 2  # other starts of a round that differs, to see what roundings make of it


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
        return _round_by_round(there.experiment, there.federate, compared)
    other, mode = Observed(), there.experiment.privacy.mode
    if mode != "none":
        raise InputError(
            f"privacy.mode is {mode!r}, whose noise follows the system's entropy on a network, so that no two "
            f"runs are equal; set 'none' to compare the runtimes, or compare with --runtime ray"
        )
    # a network's engine, and as many threads as a client there: some processors round by their number
    space = Workspace.load(there.experiment, clients=1, processes=1)
    here, starts = _run_here(space)
    there.run(sinks=[other], checkpoints=True)
    return compare(here, other, compared, probe=_probe(here, starts, space))


def _round_by_round(
    experiment: Experiment,
    federate: Federate,
    compared: Callable[[RoundComparison], None] | None,
) -> list[str]:
    """Compare a run in one process with each of its rounds again in the other runtime.

    Each repeated round begins with the same model as the original: the other runtime averages the
    clients' models in different groups, and that rounding error would grow over many rounds.
    """
    space = Workspace.load(_changed(experiment, experiment.train.engine))
    here, starts = _run_here(space)
    there = _each_again(here, starts, space, federate)
    return compare(here, there, compared, probe=_probe(here, starts, space))


def verify_engines(
    experiment: Experiment,
    compared: Callable[[RoundComparison], None] | None = None,
    engine: str = "stacked",
) -> list[str]:
    """Run an experiment, and each of its rounds again with the Trainer; returns differences.

    Every such round begins with the same model and strategy state as the other one: rounding
    errors would grow over many rounds, which is not a difference of the engines.

    Parameters
    ----------
    experiment : Experiment
        It is run in this process; its ``runtime`` is ignored.
    compared : callable, optional
        Called with each round's comparison.
    engine : str
        The engine of the run: ``stacked`` or ``direct``.

    Raises
    ------
    InputError
        If the experiment cannot be run, or its model does not allow the engine.
    RunError
        If a run could not continue.
    """
    space = Workspace.load(_changed(experiment, engine))
    here, starts = _run_here(space)
    again = space.under(_changed(experiment, "lightning"))
    there = _each_again(here, starts, again, run_in_process)
    return compare(here, there, compared, BETWEEN_ENGINES, _probe(here, starts, again))


def _run_here(space: Workspace) -> tuple[Observed, dict[int, Start]]:
    """A run in this process, and the start of the next round, by completed round."""
    initial = record_of(space.initial_state())
    record, starts = Observed(), {0: Start(0, initial, {})}
    record.models[0] = arrays_of(initial)

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
        start = starts[round.round - 1] if round.round > 1 else None
        again = _again(round, start, space, federate)
        there.started = again.started
        there.rounds += again.rounds
        there.models[round.round] = again.models[round.round]  # not the one that it began with
    return there


def _again(
    round: RoundFinished, start: Start | None, space: Workspace, federate: Federate
) -> Observed:
    """One round once more, from its start."""
    whole = with_noise(space.experiment)
    strategy = whole.strategy.model_copy(update={"rounds": round.round})
    spec = whole.model_copy(update={"strategy": strategy})
    short, record = dataclasses.replace(space, experiment=spec), Observed()
    federate(spec, [record], short, start)
    (done,) = record.rounds
    if round.central is None:  # the last round of a run is always evaluated
        record.rounds = [dataclasses.replace(done, central=None)]
    return record


def _probe(here: Observed, starts: Mapping[int, Start], space: Workspace) -> Probe:
    """Repeats a round in this process from its own start, and from others by roundings."""
    rounds = {round.round: round for round in here.rounds}

    def probe(number: int) -> list[Observed]:
        start = starts[number - 1]
        moved = [
            replace(start, arrays=_nudged(start.arrays, here.models[number], seed))
            for seed in range(_PROBES)
        ]
        return [_again(rounds[number], one, space, run_in_process) for one in (start, *moved)]

    return probe


def _nudged(arrays: ArrayRecord, end: Model, seed: int) -> ArrayRecord:
    """A model whose every number that a round moves differs by a machine epsilon."""
    rng, changed = np.random.default_rng(seed), dict[str, Array]()
    for name, array in arrays.items():
        value = changed[name] = array
        values = value.numpy()
        if values.dtype.kind != "f" or np.array_equal(values, end[name], equal_nan=True):
            continue
        finite = np.isfinite(values)
        step = np.abs(np.where(finite, end[name] - np.where(finite, values, 0), 0)).mean()
        size = np.finfo(values.dtype).eps * (np.abs(values) + step)
        by = np.where(finite, size * rng.choice([-1.0, 1.0], values.shape), 0.0)
        changed[name] = HeldArray((values + by).astype(values.dtype))
    return joined(changed)


def _changed(experiment: Experiment, engine: str) -> Experiment:
    """The experiment with another engine, and without the evaluation by clients."""
    train = experiment.train.model_copy(update={"engine": engine})
    evaluate = experiment.evaluate.model_copy(update={"clients": 0})
    return experiment.model_copy(update={"train": train, "evaluate": evaluate})
