"""Clients that train one by one, in as many processes as there are cores.

They are forked from this one: they have its data and model already, and keep their Trainer from one
client to the next.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from flsimulation.clock import Clock
from flsimulation.data.leaves import Leaves
from flsimulation.errors import ClientError, describe_error
from flsimulation.host.processes import end_with_parent
from flsimulation.host.warned import Warned, begin_sending, pass_on, taken
from flsimulation.training.batches import Batches
from flsimulation.training.failures import too_late
from flsimulation.training.jobs import Job, State, Terms, Trained
from flsimulation.training.preparation import Preparation

FitOne: TypeAlias = Callable[[State, Job, Terms], Trained | ClientError]
"""Trains one client from a model."""


class Source(NamedTuple):
    """What all clients' batches are made of."""

    x: Leaves
    """Inputs of the data set, [n, ...]."""
    y: Leaves
    prepared: Preparation


class _Held(NamedTuple):
    """What a forked process has from the one that forked it."""

    fit: FitOne
    model: State
    """In shared memory."""
    source: Source


class _JobParts(NamedTuple):
    """A `Job` as it goes to a process that has the data set."""

    partition: int
    batches: tuple[Any, ...]
    """What its `Batches` are made of beside the data set."""
    seed: Callable[[], int]
    validation: tuple[Any, ...] | None
    round: int

    @classmethod
    def of(cls, job: Job) -> _JobParts:
        validation = job.validation.parts if job.validation is not None else None
        return cls(job.partition, job.batches.parts, job.seed, validation, job.round)

    def on(self, source: Source) -> Job:
        """The job on this process's data set."""
        x, y, prepared = source

        def batches(parts: tuple[Any, ...]) -> Batches:
            return Batches(x, y, *parts, prepared=prepared)

        validation = batches(self.validation) if self.validation is not None else None
        return Job(self.partition, batches(self.batches), self.seed, validation, self.round)


_held: _Held | None = None
"""Of a forked process."""

_Arrays: TypeAlias = dict[str, np.ndarray]
_Answer: TypeAlias = tuple[tuple[Trained, _Arrays] | ClientError, list[Warned]]
"""A client's result, and the warnings of its process."""


class Workers:
    """Processes that train clients for this one.

    Parameters
    ----------
    fit : callable
        Trains one client.
    model : dict of Tensor
        Names, shapes and types of the models to come.
    source : Source
        The data set.
    count : int
        Processes; they are started with the first clients.
    clock : Clock
        The clock to use.
    """

    def __init__(self, fit: FitOne, model: State, source: Source, count: int, clock: Clock) -> None:
        self._count, self._clock = count, clock
        self._held = _Held(fit, {n: value.detach().clone() for n, value in model.items()}, source)
        for tensor in self._held.model.values():
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        self._pool: ProcessPoolExecutor | None = None
        self._others: list[Any] = []  # processes that are not ours

    def fit(
        self, model: State, jobs: Sequence[Job], terms: Terms
    ) -> Iterator[Trained | ClientError]:
        """Train clients from the same model; yields the results in the order of the jobs."""
        for name, value in model.items():
            self._held.model[name].copy_(value)
        pool = self._started()
        running: list[Future[_Answer]] = []
        try:
            running = [pool.submit(_fit, _JobParts.of(job), terms) for job in jobs]
            yield from (self._result(future, terms.expires) for future in running)
        finally:
            for future in running:
                future.cancel()

    def close(self) -> None:
        """End the processes, also in the middle of a fit."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in self._others:
                process.kill()
                process.join()
                while process.is_alive():  # the pool's thread waited for it, and has yet to say so
                    os.sched_yield()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._others = multiprocessing.active_children()
            context = multiprocessing.get_context("fork")
            given = (self._held, os.getpid())
            self._pool = ProcessPoolExecutor(self._count, context, _begin, given)
        return self._pool

    def _result(self, future: Future[_Answer], expires: float | None) -> Trained | ClientError:
        left = None if expires is None else max(0.0, expires - self._clock.time())
        try:
            found, warned = future.result(left)
        except (TimeoutError, BrokenProcessPool, CancelledError):
            self.close()  # a client that hangs is not waited for; the next ones get new processes
            if expires is not None and self._clock.time() >= expires:
                return too_late()
            return ClientError("lost", "its process was killed, most likely out of memory")
        pass_on(warned)
        if isinstance(found, ClientError):
            return found
        trained, arrays = found
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return trained._replace(state=state)


def _begin(held: _Held, parent: int) -> None:
    """Make a forked process ready: one thread, deaf to Ctrl-C, ending with its parent."""
    global _held
    torch.set_num_threads(1)  # a fork waits for ever for threads that its parent had
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _held = held
    begin_sending()


def _fit(parts: _JobParts, terms: Terms) -> _Answer:
    """Train a client in a forked process; return its warnings, too."""
    return _fitted(parts, terms), taken()


def _fitted(parts: _JobParts, terms: Terms) -> tuple[Trained, _Arrays] | ClientError:
    """Train a client in a forked process; its model as arrays, which need no open file."""
    assert _held is not None  # noqa: S101 - `_begin` has set it
    try:
        result = _held.fit(dict(_held.model), parts.on(_held.source), terms)
    except Exception as error:
        return ClientError("error", describe_error(error))
    if isinstance(result, ClientError):
        return result
    arrays = {name: tensor.numpy() for name, tensor in result.state.items()}
    return result._replace(state={}), arrays
