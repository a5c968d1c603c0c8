"""What a client's step takes in two engines that are both possible, measured on a few steps.

Processor seconds of one thread, in turns: a machine that is busy with something else takes longer
for both alike. docs/decisions/0029 says what is counted and what is measured.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import pytorch_lightning as pl
import torch

from flsimulation import seeds
from flsimulation.clock import Clock
from flsimulation.data.leaves import Leaves, examples
from flsimulation.errors import ClientError
from flsimulation.experiment.spec import Train
from flsimulation.training.alone import unnoticed
from flsimulation.training.batches import Batches
from flsimulation.training.jobs import Job, State, Terms
from flsimulation.training.preparation import Preparation
from flsimulation.training.work import Work

FASTER = 0.9
"""An engine that is tried second is taken where its step takes less than this share of the first's."""
_TURNS = 3  # of each engine, after one to warm up
_CLEAR = 1.5  # times as fast: no further turn is needed
_MOST = 4  # steps of a fit that is measured
_SHARE = 40  # all steps are at least so many times those of one turn


class Practice(Protocol):
    """What can be timed: it trains clients in this thread and drops the results."""

    def practise(self, model: State, jobs: list[Job], terms: Terms) -> None:
        """Train each client from the model. Raises `ClientError` if one fails."""


class Timed(NamedTuple):
    """An engine, and how many clients it trains at a time in one thread."""

    engine: Practice
    clients: int


class Sample:
    """Clients of practice: examples of the data set in batches of the experiment's size.

    Parameters
    ----------
    module : LightningModule
        The model; its weights are the start.
    spec : Train
        How clients train.
    x, y : Tensor or dict of Tensor
        Inputs and targets of the data set, [n, ...].
    prepared : Preparation
        How batches are prepared for the module.
    work : Work
        What the clients do in all rounds.
    clients : int
        The most at a time.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        spec: Train,
        x: Leaves,
        y: Leaves,
        prepared: Preparation,
        work: Work,
        clients: int,
    ) -> None:
        self._state, self._data, self._prepared = module.state_dict(), (x, y), prepared
        self._batch = max(1, round(min(spec.batch_size, work.examples)))
        own = work.steps // max(1, work.fits * spec.epochs)
        few = work.steps // (_SHARE * (clients + 1)) // spec.epochs
        self._batches = min(own, max(1, _MOST // spec.epochs), few)
        self._steps = self._batches * spec.epochs

    @property
    def is_worth_it(self) -> bool:
        """Whether the clients take many more steps than measuring does."""
        return self._steps > 0

    def seconds(self, timed: Timed, clock: Clock) -> float:
        """Processor seconds of a client's step. Raises what its training raises."""
        jobs = [self._job(place) for place in range(timed.clients)]
        began = clock.processor()
        timed.engine.practise(self._state, jobs, Terms(average=True))
        return (clock.processor() - began) / (timed.clients * self._steps)

    def _job(self, place: int) -> Job:
        size = self._batches * self._batch
        rows = (np.arange(size) + place * size) % examples(self._data[0])
        batches = Batches(
            *(*self._data, rows, self._batch, lambda: seeds.rng(0, "practice")),
            prepared=self._prepared,
        )
        return Job(place, batches, int, round=1)


def step_seconds(engines: Mapping[str, Timed], sample: Sample, clock: Clock) -> dict[str, float]:
    """Median processor seconds of a client's step by engine; empty if a client of practice fails.

    Parameters
    ----------
    engines : mapping
        By name, those that may be compared; first the one that is taken unless another is faster.
    sample : Sample
        What they train.
    clock : Clock
        The clock to use.
    """
    found: dict[str, list[float]] = {name: [] for name in engines}
    try:
        with unnoticed():
            for turn in range(1 + _TURNS):
                for name, timed in engines.items():
                    seconds = sample.seconds(timed, clock)
                    if turn:
                        found[name].append(seconds)
                if turn and _is_clear(*map(statistics.median, found.values())):
                    break
    except Exception:  # a user's module, or a transform; the run itself tells it
        return {}
    return {name: statistics.median(own) for name, own in found.items()}


def _is_clear(first: float, *others: float) -> bool:
    """Whether the first engine is the fastest, or another one by far."""
    fastest = min(others, default=first)
    return fastest >= first or _CLEAR * fastest < first


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Hold PyTorch to this thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def raise_first(results: Iterable[object]) -> None:
    """Raise the error of a client that failed, if one did."""
    for result in results:
        if isinstance(result, ClientError):
            raise result
