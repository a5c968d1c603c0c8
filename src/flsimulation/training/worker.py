"""What a process does that trains clients for the one that forked it."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flsimulation.data.leaves import Leaves
from flsimulation.errors import ClientError, describe_error
from flsimulation.host.processes import end_with_parent
from flsimulation.host.warned import Warned, begin_sending, taken
from flsimulation.privacy.transforms import Noise
from flsimulation.training.batches import Batches
from flsimulation.training.jobs import Job, State, Terms, Trained
from flsimulation.training.preparation import Preparation
from flsimulation.training.rooms import Layout, Packed, Room

FitOne: TypeAlias = Callable[[State, Job, Terms], Trained | ClientError]
"""Trains one client from a model."""

QUEUE = 2
"""Clients that a worker may have: one trains, and the next one is there when it is done."""


class Source(NamedTuple):
    """What all clients' batches are made of."""

    x: Leaves
    """Inputs of the data set, [n, ...]."""
    y: Leaves
    prepared: Preparation


class Slot(NamedTuple):
    """Shared memory of one client that a worker has."""

    room: Room
    """Its job."""
    memory: Tensor
    """Its model afterwards; uint8 [bytes]."""
    model: State
    """The same, by name."""


class Held(NamedTuple):
    """What a forked process has from the one that forked it."""

    fit: FitOne
    model: State
    """The global model, in shared memory."""
    source: Source
    layout: Layout
    slots: tuple[Slot, ...]


class JobParts(NamedTuple):
    """A `Job` as it is sent to a process that has the data set."""

    partition: int
    batches: tuple[Any, ...]
    """What its `Batches` are made of beside the data set."""
    seed: Callable[[], int]
    validation: tuple[Any, ...] | None
    round: int
    noise: Noise | None

    @classmethod
    def of(cls, job: Job) -> JobParts:
        """The parts of a job."""
        validation = _parts(job.validation) if job.validation is not None else None
        return cls(job.partition, _parts(job.batches), job.seed, validation, job.round, job.noise)

    def on(self, source: Source) -> Job:
        """The job on this process's data set."""
        x, y, prepared = source

        def batches(parts: tuple[Any, ...]) -> Batches:
            return Batches(x, y, *parts, prepared=prepared)

        validation = batches(self.validation) if self.validation is not None else None
        own = batches(self.batches)
        return Job(self.partition, own, self.seed, validation, self.round, self.noise)


def _parts(batches: Batches) -> tuple[Any, ...]:
    indices, *rest = batches.parts
    return np.ascontiguousarray(indices), *rest


class Request(NamedTuple):
    """A client to train."""

    slot: int
    version: int
    """Of the global model: another one for each pass."""
    packed: Packed
    """Its parts and terms, whose arrays lie in the slot's room."""


class Answer(NamedTuple):
    """A client's result, and the warnings of its process."""

    found: Trained | ClientError
    """Without its model."""
    arrays: dict[str, np.ndarray] | None
    """Its model, if that has another form than the global one's; else it lies in the slot."""
    warned: list[Warned]

    def result(self, slot: Slot, layout: Layout) -> Trained | ClientError:
        """The result with its model, copied."""
        if isinstance(self.found, ClientError):
            return self.found
        if self.arrays is None:
            return self.found._replace(state=layout.views(slot.memory.clone()))
        state = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        return self.found._replace(state=state)


def serve(held: Held, connection: Connection, others: Sequence[Connection], parent: int) -> None:
    """Train clients until the parent ends, or ends this process.

    Parameters
    ----------
    held : Held
        The work's data and function.
    connection : Connection
        To the parent: receives `Request`, sends `Answer`.
    others : sequence of Connection
        The parent's own ends, which are closed.
    parent : int
        Its process id.
    """
    for other in others:
        other.close()
    _begin(parent)
    model, version = dict(held.model), 0
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            request: Request = connection.recv()
            if request.version != version:  # another object, so that what was made of it is, too
                model, version = dict(held.model), request.version
            connection.send(_answer(held, model, request))


def _begin(parent: int) -> None:
    """Make a forked process ready: one thread, deaf to Ctrl-C, ending with its parent."""
    torch.set_num_threads(1)  # a fork waits for ever for threads that its parent had
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    multiprocessing.current_process().daemon = False  # a module may start processes of its own
    gc.freeze()  # what the parent had stays, and is looked through for nothing
    begin_sending()


def _answer(held: Held, model: State, request: Request) -> Answer:
    slot = held.slots[request.slot]
    try:
        parts, terms = slot.room.unpack(request.packed)
        found = held.fit(model, parts.on(held.source), terms)
        arrays = _leave(found.state, slot, held.layout) if isinstance(found, Trained) else None
    except Exception as error:
        found, arrays = ClientError("error", describe_error(error)), None
    if isinstance(found, Trained):
        found = found._replace(state={})
    return Answer(found, arrays, taken())


def _leave(state: State, slot: Slot, layout: Layout) -> dict[str, np.ndarray] | None:
    """Leave a model in the slot; it is returned if it does not fit there."""
    if not layout.fits(state):
        return {name: tensor.numpy() for name, tensor in state.items()}
    for name, place in slot.model.items():
        place.copy_(state[name])
    return None
