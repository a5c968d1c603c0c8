"""Who computes: what all engines have in common, and the one choice between them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import pytorch_lightning as pl
import torch

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.leaves import Leaves
from flsimulation.errors import ModelError
from flsimulation.events import NOT_DIRECT
from flsimulation.experiment.spec import Train
from flsimulation.privacy.examples import Noisy
from flsimulation.training.candidates import Candidates
from flsimulation.training.direct_engine import DirectEngine
from flsimulation.training.jobs import Fitted, Job, Scored, State, Terms
from flsimulation.training.lightning import as_on_device
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.private.engine import PrivateEngine
from flsimulation.training.stacked.engine import StackedEngine
from flsimulation.training.timing import FASTER
from flsimulation.training.trainers import takes_gpu
from flsimulation.training.work import Tell, Work, silent

NOT_FASTER = "it is not faster for this model on this machine"
"""Why clients are not trained stacked although the module allows it."""


class Before(NamedTuple):
    """The choice of a run that is resumed: it is not made again, as its bits depend on it."""

    engine: str | None = None
    """As in the manifest; None if it named none, or several."""
    why_not: str | None = None
    step_seconds: Mapping[str, float] = MappingProxyType({})


class Engine(Protocol):
    """Trains and evaluates clients from a global model.

    A client that fails is a result, a `ClientError`, and does not touch the others. A call that
    fails as a whole raises a `RunError`.
    """

    @property
    def name(self) -> str:
        """``stacked``, ``direct`` or ``lightning``, as in the manifest."""

    @property
    def why_not(self) -> str | None:
        """Why clients are not trained stacked, where that was tried."""

    @property
    def step_seconds(self) -> Mapping[str, float]:
        """Processor seconds of a client's step by engine, where they decided; else empty."""

    @property
    def averages(self) -> bool:
        """Whether it can return the mean of its clients' models in place of each one's."""

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it computes on."""

    @property
    def can_evaluate(self) -> bool:
        """Whether the module has a ``validation_step`` (or a ``test_step``)."""

    def fit(self, model: State, jobs: Sequence[Job], terms: Terms) -> Iterator[Fitted]:
        """Train each client from the same global model, which is not changed.

        Yields results as they are there; every job is in one of them.
        """

    def evaluate(
        self, model: State, jobs: Sequence[Job], expires: float | None = None
    ) -> Iterator[Scored]:
        """Score the model, which is not changed, on each job's batches.

        Yields results as they are there; every job is in one of them. After ``expires``, Unix time
        in seconds, clients fail as too late.
        """

    def close(self) -> None:
        """End what a call has started; the next call starts again."""


def engine_for(
    module: pl.LightningModule,
    spec: Train,
    x: Leaves,
    y: Leaves,
    clients: int,
    processes: int = 1,
    clock: Clock = SYSTEM,
    *,
    prepared: Preparation = PLAIN,
    work: Work | None = None,
    tell: Tell = silent,
    measures: bool = False,
    before: Before | None = None,
    noisy: Noisy | None = None,
) -> Engine:
    """The engine that trains an experiment's clients where this is called.

    Unless the experiment requests one: ``stacked`` where the module allows it, else ``direct``, and
    where a fit needs Lightning's Trainer, ``lightning``. Where stacked and direct are both
    possible, and it is measured that direct steps are faster, ``direct``. Where only one client ever
    is, on a node of a network, a loop starts sooner than a program is built: there the experiment
    has to request ``stacked``.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    spec : Train
        The engine that is requested, and how clients train.
    x, y : Tensor or dict of Tensor
        Inputs and targets of the data set, [n, ...].
    clients : int
        The most that may train or evaluate here at a time; 0 where there is only the test set.
    processes : int
        The most in which clients train one by one.
    clock : Clock
        The clock to use.
    prepared : Preparation
        How batches are prepared for the module.
    work : Work, optional
        What the clients do in all rounds; a step is traced only where it is worth that.
    tell : callable
        Called with what the choice of the engine does now.
    measures : bool
        Whether steps may be measured, if there are many more of them.
    before : Before, optional
        The choice that was made for this run before.
    noisy : Noisy, optional
        The clipping and the noise of DP-SGD, with which clients train.

    Raises
    ------
    InputError
        If the experiment requests a device that is not available.
    ModelError
        If the experiment requests an engine that the module does not allow.
    """
    spec = as_on_device(spec)
    if noisy is not None:
        return PrivateEngine(
            module, spec, x, y, noisy, clients, clock, prepared=prepared, tell=tell
        )
    least, kept = 1 if spec.engine == "stacked" else 2, before or Before()
    if work is not None and kept.engine == "stacked":
        work = work._replace(decided=True)
    own = Candidates(module, spec, x, y, processes, clock, prepared, work, tell)
    why_not = kept.why_not if kept.engine == "direct" else None
    may_stack = spec.engine == "stacked" or (spec.engine == "auto" and kept.engine != "direct")
    if may_stack and clients >= least:
        stacked = own.stacked()
        if isinstance(stacked, StackedEngine):
            stacked.step_seconds = kept.step_seconds
            stacked.otherwise = None if spec.engine == "stacked" else own.one_by_one
            if before is not None:
                stacked.choose(clients, kept.step_seconds)
            return _faster(own, stacked) if measures and before is None else stacked
        _refuse(spec, "stacked", why_not := stacked)
    if spec.engine != "lightning":
        direct = own.direct(why_not)
        if isinstance(direct, DirectEngine):
            direct.step_seconds = kept.step_seconds
            return direct
        _refuse(spec, "direct", direct)
        if not (why_not or "").startswith(direct):  # which may lack the line in the user's file
            why_not = direct if why_not is None else f"{why_not}{NOT_DIRECT}{direct}"
    return own.lightning(why_not)


def _faster(own: Candidates, stacked: StackedEngine) -> Engine:
    """The stacked engine, or the direct one if its steps are clearly faster here."""
    if own.spec.engine == "stacked" or own.chose_way(stacked):
        return stacked
    if isinstance(direct := own.direct(NOT_FASTER), str):
        return stacked
    seconds = own.step_seconds(stacked, direct)
    stacked.step_seconds = direct.step_seconds = seconds
    if not seconds or seconds["direct"] >= FASTER * seconds["stacked"]:
        return stacked
    return direct


def _refuse(spec: Train, engine: str, reason: str) -> None:
    """Raise `ModelError` if the experiment requests an engine that the module does not allow."""
    if spec.engine == engine:
        raise ModelError(f"train.engine is {engine!r}, but {reason}; use 'auto' or 'lightning'")


def processes_for(spec: Train, clients: int) -> int:
    """Number of processes in which clients train one by one: at most one per core and per client.

    One where the GPU is, which no process may use before it forks, and where processes cannot fork.
    """
    if takes_gpu(spec) or "fork" not in multiprocessing.get_all_start_methods():
        return 1
    return max(1, min(torch.get_num_threads(), clients))
