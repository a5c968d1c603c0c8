"""How fast each engine trains an experiment's clients here, and why not with a faster one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flsimulation.client.workspace import Workspace, work_of
from flsimulation.clock import SYSTEM, Clock
from flsimulation.experiment import Experiment
from flsimulation.training.candidates import Candidates
from flsimulation.training.engine import NOT_FASTER, Engine
from flsimulation.training.lightning import as_on_device
from flsimulation.training.remedies import remedy_of
from flsimulation.training.stacked.engine import StackedEngine
from flsimulation.training.timing import FASTER, Sample, Timed, step_seconds
from flsimulation.training.work import Work

_MANY = 10**6  # rounds: measuring is what this is for, however few the experiment has


@dataclass(frozen=True)
class Rated:
    """One engine, for one experiment."""

    name: str
    reason: str | None
    """Why it is not possible, or not taken although it is; None if nothing is against it."""
    remedy: str | None
    """What to change."""
    possible: bool
    start_seconds: float
    """Of preparing it."""
    step_seconds: float | None
    """Processor seconds of one step of one client; None where they cannot be measured."""
    round_seconds: float | None
    """Of the training of a round, estimated."""

    def whole(self, rounds: int) -> float | None:
        """Seconds of its start and of so many rounds, if a round's are known."""
        return (
            None if self.round_seconds is None else self.start_seconds + rounds * self.round_seconds
        )


@dataclass(frozen=True)
class Examination:
    """What trains an experiment, beside what else could."""

    engine: str
    """The engine of a run in one process."""
    choosing: float
    """Seconds of its choice."""
    cohort: int
    """Clients in a round."""
    steps: float
    """Of one client in a round, on average."""
    cores: int
    """Used at a time."""
    rounds: int
    engines: tuple[Rated, ...]
    """The one that promises most first."""
    gpu: bool = False
    """Whether a GPU trains."""

    @property
    def faster(self) -> tuple[Rated, ...]:
        """Those that promise more than the one that trains."""
        names = [rated.name for rated in self.engines]
        return self.engines[: names.index(self.engine)]

    def pays(self, rated: Rated) -> bool:
        """Whether an engine that is possible takes clearly less for all rounds than the run's."""
        own = next(other for other in self.engines if other.name == self.engine)
        mine, theirs = rated.whole(self.rounds), own.whole(self.rounds)
        return rated.possible and None not in (mine, theirs) and mine < FASTER * theirs  # type: ignore[operator]


def examine(experiment: Experiment, clock: Clock = SYSTEM) -> Examination:
    """Choose the engine as a run in one process does, and measure a few steps of each possible one.

    Parameters
    ----------
    experiment : Experiment
        What is to be trained.
    clock : Clock
        The clock to use.

    Raises
    ------
    InputError
        If the experiment's data, model or engine is not available.
    """
    runtime = experiment.runtime.model_copy(update={"kind": "inprocess"})
    experiment = experiment.model_copy(update={"runtime": runtime})
    space = Workspace.load(experiment, clock=clock, measures=True)
    work = work_of(experiment, space.data)
    tried = _Tried(space, work, clock)
    seconds = tried.step_seconds()
    each, cores = work.steps / work.fits, min(torch.get_num_threads(), work.cohort)
    rated = tuple(
        tried.rated(name, seconds.get(name), work.cohort * each / cores) for name in tried.found
    )
    for engine in tried.engines.values():
        engine.close()
    return Examination(
        *(space.engine.name, space.choosing, work.cohort, each, cores, work.rounds, rated),
        gpu=space.engine.gpu is not None,
    )


class _Tried:
    """The engines that an experiment's model allows, each prepared once."""

    def __init__(self, space: Workspace, work: Work, clock: Clock) -> None:
        spec, dataset = as_on_device(space.experiment.train), space.data.dataset
        x, y = dataset.x_train, dataset.y_train
        self._own = Candidates(space.module, spec, x, y, 1, clock, space.prepared)
        self._space, self._work, self._clock = space, work, clock
        self.found: dict[str, Engine | str] = {}
        self._starts: dict[str, float] = {}
        for name in ("stacked", "direct", "lightning"):
            self._try(name)

    def _try(self, name: str) -> None:
        """Prepare an engine; the one that was chosen is there."""
        chosen = self._space.engine
        if chosen.name == name:
            self.found[name], self._starts[name] = chosen, self._space.choosing
            return
        began = self._clock.monotonic()
        found = getattr(self._own, name)()
        before = self.found.get("stacked")
        if isinstance(found, str) and isinstance(before, str) and before.startswith(found):
            found = before  # which also has the line in the user's file
        self.found[name], self._starts[name] = found, self._clock.monotonic() - began

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Those that are possible."""
        return {n: engine for n, engine in self.found.items() if not isinstance(engine, str)}

    def step_seconds(self) -> dict[str, float]:
        """By engine; empty on a GPU, and where clients of practice fail."""
        if self._space.engine.gpu is not None:
            return {}
        own, work = self._own, self._work.repeated(_MANY)
        engines = self.engines
        most = max(_at_once(engine, self._work) for engine in engines.values())
        sample = Sample(own.module, own.spec, own.x, own.y, own.prepared, work, most)
        timed = {n: Timed(e, _at_once(e, self._work)) for n, e in engines.items()}  # type: ignore[arg-type]
        return step_seconds(timed, sample, self._clock)

    def rated(self, name: str, seconds: float | None, steps: float) -> Rated:
        """What is known of an engine, for so many steps one after the other."""
        engine = self.found[name]
        reason = engine if isinstance(engine, str) else self._why_not_taken(name)
        remedy = remedy_of(reason) if reason is not None else None
        total = None if seconds is None else seconds * steps
        possible = not isinstance(engine, str)
        return Rated(name, reason, remedy, possible, self._starts[name], seconds, total)

    def _why_not_taken(self, name: str) -> str | None:
        """Why a possible engine is not the one of the run."""
        chosen = self._space.engine
        order = list(self.found)
        if order.index(name) >= order.index(chosen.name):
            return None
        requested = self._space.experiment.train.engine
        if requested != "auto":
            return f"train.engine = {requested!r} requests the other"
        return chosen.why_not or NOT_FASTER


def _at_once(engine: Engine, work: Work) -> int:
    return engine.at_once(work.cohort) if isinstance(engine, StackedEngine) else 1
