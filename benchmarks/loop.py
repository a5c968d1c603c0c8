"""A round of federated averaging as anyone would write it in PyTorch, without a Trainer.

Client after client takes the module's own training step, in this process or in several that are
forked; the models are averaged, buffers too, and the mean is evaluated. Random numbers are drawn from
the streams that FLSimulation seeds for the same clients, so that dropout leaves out the same.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import flsimulation  # noqa: F401 - before torch: it lets OpenMP's waiting threads sleep
import numpy as np
import torch
from torch import Tensor

from flsimulation import seeds
from flsimulation.client.workspace import Workspace
from flsimulation.training.products import in_tf32
from flsimulation.host.processes import end_with_parent
from flsimulation.training.alone import detached

State: TypeAlias = dict[str, Tensor]


class Sum:
    """Models added up, each as often as it has examples."""

    def __init__(self) -> None:
        self.total: State = {}
        self.kinds: dict[str, torch.dtype] = {}
        self.examples = 0

    def add(self, state: State, examples: int) -> None:
        for name, value in state.items():
            self.kinds[name] = value.dtype
            summand = value.detach() * examples
            self.total[name] = self.total[name] + summand if name in self.total else summand
        self.examples += examples

    def join(self, total: dict[str, np.ndarray], examples: int) -> None:
        """Add what another process has added up."""
        for name, array in total.items():
            value = torch.from_numpy(array)
            self.kinds[name] = value.dtype
            self.total[name] = self.total[name] + value if name in self.total else value
        self.examples += examples

    def mean(self) -> State:
        """The mean model; integers, which are counters, are rounded."""
        return {name: self._mean(value, self.kinds[name]) for name, value in self.total.items()}

    def _mean(self, total: Tensor, kind: torch.dtype) -> Tensor:
        if kind.is_floating_point:
            return total / self.examples
        return (total.double() / self.examples).round().to(kind)


class Loop:
    """The loop, on one thread of this process.

    Parameters
    ----------
    space : Workspace
        The data and the model of FLSimulation, of which nothing is changed.
    device : str
        ``cpu`` or ``cuda``.
    """

    def __init__(self, space: Workspace, device: str = "cpu") -> None:
        self.space, self.device = space, device
        self.module: Any = detached(space.module).to(device)

    def round(self, state: State, cohort: Sequence[int], number: int, *, judge: bool) -> State:
        """Train the cohort from ``state``, average, and evaluate if ``judge``; the new model."""
        with threads(1), in_tf32(None if self.device == "cpu" else False):  # as FLSimulation
            new = self.summed(state, cohort, number).mean()
            if judge:
                self.judge(new)
            return {name: value.cpu() for name, value in new.items()}

    def summed(self, state: State, cohort: Sequence[int], number: int) -> Sum:
        """The models of the cohort's clients, added up."""
        found = Sum()
        for partition in cohort:
            found.add(*self.trained(state, partition, number))
        return found

    def trained(self, state: State, partition: int, number: int) -> tuple[State, int]:
        """A client's model after an epoch, which the next client overwrites, and its examples."""
        module, job = self.module, self.space.train_job(partition, number)
        module.load_state_dict(state)
        module.train()
        optimizer = module.configure_optimizers()
        with seeds.global_streams(job.seed()):
            for index, (x, y) in enumerate(job.batches):
                batch = (x.to(self.device), y.to(self.device))
                optimizer.zero_grad()
                module.training_step(batch, index).backward()
                optimizer.step()
        return module.state_dict(), job.batches.examples

    def judge(self, state: State) -> float:
        """The share of the test set's labels that the model gets right."""
        dataset: Any = self.space.data.dataset
        self.module.load_state_dict(state)
        self.module.eval()
        right = 0
        with torch.inference_mode():
            for x, y in zip(dataset.x_test.split(1000), dataset.y_test.split(1000), strict=True):
                logits = self.module(x.to(self.device))
                right += int((logits.argmax(1) == y.to(self.device)).sum())
        return right / dataset.y_test.numel()


class Processes:
    """The loop in forked processes, on one thread each; every one trains its share of the cohort.

    The evaluation is this process's, on as many threads. `close` ends the processes.

    Parameters
    ----------
    loop : Loop
        On the CPU.
    count : int
        Number of processes.
    """

    def __init__(self, loop: Loop, count: int) -> None:
        self._loop, self._count = loop, count
        self._state: State = {
            n: v.clone().share_memory_() for n, v in loop.module.state_dict().items()
        }
        context = multiprocessing.get_context("fork")
        self._pool = context.Pool(count, _begin, (loop, self._state))

    def round(self, state: State, cohort: Sequence[int], number: int, *, judge: bool) -> State:
        """What `Loop.round` returns, but for rounding."""
        for name, value in state.items():
            self._state[name].copy_(value)
        shares = [(cohort[first :: self._count], number) for first in range(self._count)]
        found = Sum()
        for total, examples in self._pool.map(_share, [s for s in shares if s[0]], chunksize=1):
            found.join(total, examples)
        new = found.mean()
        if judge:
            with threads(self._count):
                self._loop.judge(new)
        return new

    def close(self) -> None:
        self._pool.close()
        self._pool.join()


_held: tuple[Loop, State]
"""Of a forked process: the loop, and the model in shared memory."""


def _begin(loop: Loop, state: State) -> None:
    global _held
    torch.set_num_threads(1)  # a fork waits for ever for threads that its parent had
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    _held = loop, state


def _share(task: tuple[Sequence[int], int]) -> tuple[dict[str, np.ndarray], int]:
    """The sum over some clients, as arrays, which need no open file, and their examples."""
    loop, state = _held
    found = loop.summed(state, *task)
    return {name: value.numpy() for name, value in found.total.items()}, found.examples


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of PyTorch inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
