"""Clients that train one by one, in as many processes as there are cores.

They are forked from this one: they have its data and model already, and keep what they made for one
client for the next.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, TypeAlias

from flsimulation.clock import Clock
from flsimulation.errors import ClientError
from flsimulation.host.warned import Warned, pass_on
from flsimulation.training.failures import too_late
from flsimulation.training.jobs import Job, State, Terms, Trained
from flsimulation.training.rooms import Layout, Room
from flsimulation.training.worker import (
    QUEUE,
    Answer,
    FitOne,
    Held,
    JobParts,
    Request,
    Slot,
    Source,
    serve,
)

__all__ = ["FitOne", "Source", "Workers"]

Done: TypeAlias = tuple[Trained | ClientError, list[Warned]]
"""A client's result, and the warnings of its process."""

_LEAST_ROOM = 1 << 16  # bytes for the indices of a client


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
        self._fit, self._source, self._count, self._clock = fit, source, count, clock
        self._layout = Layout(model)
        self._model = self._layout.shared()
        self._views = self._layout.views(self._model)
        self._version = 0
        self._room = _LEAST_ROOM
        self._all: list[_Worker] = []

    def fit(
        self, model: State, jobs: Sequence[Job], terms: Terms
    ) -> Iterator[Trained | ClientError]:
        """Train clients from the same model; yields the results in the order of the jobs."""
        for name, value in model.items():
            self._views[name].copy_(value)
        self._version += 1
        self._make_room(jobs)
        pass_ = _Pass(jobs, terms, self._version)
        try:
            for place in range(len(jobs)):
                while place not in pass_.done:
                    self._advance(pass_)
                found, warned = pass_.done.pop(place)
                pass_on(warned)
                yield found
        finally:
            if any(worker.running for worker in self._all):  # nobody waits for their results
                self.close()

    def close(self) -> None:
        """End the processes, also in the middle of a fit."""
        workers, self._all = self._all, []
        for worker in workers:
            worker.end()

    def _make_room(self, jobs: Sequence[Job]) -> None:
        """Have room for the indices of each of the clients: for more than before, in new processes."""
        most = max((_bytes_of(job) for job in jobs), default=0)
        if most > self._room:
            self.close()
            self._room = most

    def _advance(self, pass_: _Pass) -> None:
        """Give the workers clients, and take the results that are there; wait for one of them."""
        self._assign(pass_)
        left = None
        if pass_.terms.expires is not None:
            left = max(0.0, pass_.terms.expires - self._clock.time())
        busy = {worker.connection: worker for worker in self._all if worker.running}
        ended = {worker.process.sentinel: worker for worker in busy.values()}
        if not busy:  # those that had ended are not there any more
            return
        ready: list[Any] = wait([*busy, *ended], left)
        if not ready:
            self.close()  # a client that hangs is not waited for; the next ones get new processes
            pass_.fail_rest(too_late())
        for one in ready:
            if (worker := busy.get(one)) is not None:
                self._take(worker, pass_)
            elif (worker := ended[one]) in self._all and not worker.has_answered:
                self._lose(worker, pass_)

    def _assign(self, pass_: _Pass) -> None:
        """Give each worker a client, and another one while it trains, if there are many."""
        while len(self._all) < min(self._count, len(pass_.waiting)):
            self._all.append(self._started())
        for most in range(1, QUEUE + 1):
            for worker in list(self._all):
                enough = most == 1 or len(pass_.waiting) > self._count
                if pass_.waiting and enough and len(worker.running) < most:
                    self._give(worker, pass_)

    def _give(self, worker: _Worker, pass_: _Pass) -> None:
        """Give a worker the next client; one that has ended is replaced."""
        place = pass_.waiting.popleft()
        if not worker.send(place, pass_):
            pass_.waiting.appendleft(place)
            self._lose(worker, pass_)

    def _take(self, worker: _Worker, pass_: _Pass) -> None:
        """Take one result, if the worker has not ended instead."""
        try:
            answer: Answer = worker.connection.recv()
        except (EOFError, OSError):
            self._lose(worker, pass_)
            return
        place, slot = worker.running.popleft()
        pass_.done[place] = answer.result(slot, self._layout), answer.warned

    def _lose(self, worker: _Worker, pass_: _Pass) -> None:
        """Give up the client that a worker trained when it was killed; others train the next one."""
        self._all.remove(worker)
        worker.end()
        if worker.running:
            place, _ = worker.running.popleft()
            late = pass_.is_over(self._clock)
            lost = ClientError("lost", "its process was killed, most likely out of memory")
            pass_.done[place] = (too_late() if late else lost), []
        pass_.waiting.extendleft(place for place, _ in reversed(worker.running))

    def _slot(self) -> Slot:
        memory = self._layout.shared()
        return Slot(Room(self._room), memory, self._layout.views(memory))

    def _started(self) -> _Worker:
        slots = tuple(self._slot() for _ in range(QUEUE))
        held = Held(self._fit, self._views, self._source, self._layout, slots)
        return _Worker(held, [worker.connection for worker in self._all])


class _Pass:
    """One call of `Workers.fit`."""

    def __init__(self, jobs: Sequence[Job], terms: Terms, version: int) -> None:
        self.jobs, self.terms, self.version = jobs, terms, version
        self.waiting = deque(range(len(jobs)))
        """Places of the jobs that no worker has."""
        self.done: dict[int, Done] = {}
        """Results that were not yielded yet, by place."""

    def is_over(self, clock: Clock) -> bool:
        """Whether results are too late."""
        return self.terms.expires is not None and clock.time() >= self.terms.expires

    def fail_rest(self, error: ClientError) -> None:
        """Make the error the result of all jobs that have none."""
        self.waiting.clear()
        self.done = _Otherwise(self.done, error)


class _Otherwise(dict[int, Done]):
    """Results, and one error for all others."""

    def __init__(self, known: dict[int, Done], error: ClientError) -> None:
        super().__init__(known)
        self._error = error

    def __contains__(self, _: object) -> bool:
        return True

    def pop(self, place: int, *_: Any) -> Done:
        return super().pop(place, (self._error, []))


class _Worker:
    """One process, and the clients that it has."""

    def __init__(self, held: Held, others: list[Any]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self._slots = held.slots
        self.running = deque[tuple[int, Slot]]()
        """Places of the jobs that it was given, and where their data lies; the first one trains."""
        self._next = 0
        closing = [*others, self.connection]  # ends of other pipes, which a fork has too
        self.process = context.Process(
            target=serve, args=(held, theirs, closing, os.getpid()), daemon=True
        )
        self.process.start()
        theirs.close()

    def send(self, place: int, pass_: _Pass) -> bool:
        """Give it a job; False if it has ended."""
        number, job = self._next % QUEUE, pass_.jobs[place]
        slot = self._slots[number]
        packed = slot.room.pack((JobParts.of(job), pass_.terms))
        try:
            self.connection.send(Request(number, pass_.version, packed))
        except OSError:
            return False
        self._next += 1
        self.running.append((place, slot))
        return True

    @property
    def has_answered(self) -> bool:
        """Whether an answer is there that was not taken."""
        return bool(self.connection.poll())

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _bytes_of(job: Job) -> int:
    parts = [job.batches] if job.validation is None else [job.batches, job.validation]
    return sum(batches.parts[0].nbytes + 64 for batches in parts)
