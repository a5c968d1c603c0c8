"""Clients that train one by one, in as many processes as there are cores.

Where a module cannot be trained stacked, a cohort's clients are given to processes forked from this
one: they have its data and model already, and keep their Trainer from one client to the next.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Message

from flsimulation.client.answers import Order, fit, fit_metrics, order_of
from flsimulation.client.cohort import Asked
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, describe_error
from flsimulation.host.processes import end_with_parent
from flsimulation.messages.content import failure, model_of, reply, state_of_record
from flsimulation.training import State
from flsimulation.training.failures import too_late

_space: Workspace | None = None
_model: State | None = None
"""Of a forked process: what it has from the one that forked it. The model is shared memory."""


class _Sent(NamedTuple):
    """A `Fit` as it goes from one process to another: as arrays, which need no open file."""

    arrays: dict[str, np.ndarray]
    scores: dict[str, float]
    steps: int
    seconds: float


class Workers:
    """Processes that train clients for this one.

    Parameters
    ----------
    space : Workspace
        The data and the model.
    count : int
        Processes; they are started with the first cohort.
    """

    def __init__(self, space: Workspace, count: int) -> None:
        self._space = space
        self._count = count
        self._model = space.initial_state()
        for tensor in self._model.values():
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        self._pool: ProcessPoolExecutor | None = None
        self._others: list[Any] = []  # processes that are not ours

    def train(self, asked: Sequence[Asked]) -> Iterator[list[Message]]:
        """Answer training messages that carry the same model, one after the other.

        Parameters
        ----------
        asked : sequence of Asked
            At least one; the first one's model and settings are those of all.

        Yields
        ------
        list of Message
            One client's answer, in the order of ``asked``.
        """
        for name, value in state_of_record(model_of(asked[0].message)).items():
            self._model[name].copy_(value)
        order, pool = order_of(*asked[0], self._space), self._started()
        running: list[Future[_Sent | ClientError]] = []
        try:
            running = [pool.submit(_train, order._replace(partition=p)) for _, p in asked]
            for (message, partition), future in zip(asked, running, strict=True):
                yield [self._answer(message, order._replace(partition=partition), future)]
        finally:
            for future in running:
                future.cancel()

    def close(self) -> None:
        """End the processes, whatever they do."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in self._others:
                process.kill()
                process.join()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._others = multiprocessing.active_children()
            self._pool = ProcessPoolExecutor(
                self._count,
                multiprocessing.get_context("fork"),
                _begin,
                (self._space, self._model, os.getpid()),
            )
        return self._pool

    def _answer(self, message: Message, order: Order, future: Future[Any]) -> Message:
        left = None if order.expires is None else max(0.0, order.expires - time.time())
        try:
            result = future.result(left)
        except (TimeoutError, BrokenProcessPool, CancelledError):
            self.close()  # nobody waits for one who hangs; the next cohort gets new processes
            if order.expires is not None and time.time() >= order.expires:
                return failure(message, too_late())
            lost = "its process was killed, most likely for want of memory"
            return failure(message, ClientError("lost", lost))
        if isinstance(result, ClientError):
            return failure(message, result)
        try:
            metrics = fit_metrics(self._space, order.partition, result)
        except ClientError as error:
            return failure(message, error)
        state = {name: torch.from_numpy(array) for name, array in result.arrays.items()}
        return reply(message, metrics, state)


def workers_for(space: Workspace) -> Workers | None:
    """Processes for an experiment's clients, where they are of use."""
    cores, spec = torch.get_num_threads(), space.experiment
    useful = cores > 1 and spec.cohort_size > 1 and not space.trainer.uses_gpu
    if not useful or "fork" not in multiprocessing.get_all_start_methods():
        return None
    return Workers(space, min(cores, spec.cohort_size))


def _begin(space: Workspace, model: State, parent: int) -> None:
    """Make a forked process ready: one thread, deaf to Ctrl-C, ending with its parent."""
    global _space, _model
    torch.set_num_threads(1)  # a fork waits for ever for threads that its parent had
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _space, _model = space, model


def _train(order: Order) -> _Sent | ClientError:
    assert _space is not None  # noqa: S101 - `_begin` has set both
    assert _model is not None  # noqa: S101
    try:
        done = fit(_space, dict(_model), order)
    except ClientError as error:
        return error
    except Exception as error:
        return ClientError("error", describe_error(error))
    arrays = {name: tensor.numpy() for name, tensor in done.state.items()}
    return _Sent(arrays, done.scores, done.steps, done.seconds)
