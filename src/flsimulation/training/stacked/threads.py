"""Waves on several threads, each with a core of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Done = TypeVar("Done")


def filled(places: list[int]) -> list[int]:
    """The places of a wave, and its last one again up to 1, 2, 4, ... of them.

    A program is made for each number of clients, and the last wave of cohorts that are samples of any
    size has another one in each round.
    """
    size = 1 << (len(places) - 1).bit_length()
    return [*places, *places[-1:] * (size - len(places))]


class Threads:
    """Threads that train waves; started with the first ones."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def run(
        self, train: Callable[[list[int]], list[Done]], waves: list[list[int]], threads: int
    ) -> Iterator[Done]:
        """Waves in order; not many more than there are threads exist at once.

        Parameters
        ----------
        train : callable
            Trains the clients of a wave, of their places.
        waves : list of list of int
            The places of each wave's clients.
        threads : int
            Waves that train at once; PyTorch has one thread for each meanwhile.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, "cohort", lambda: torch.set_num_threads(1))
        running = deque[Future[list[Done]]]()
        torch.set_num_threads(1)
        try:
            for places in waves:
                running.append(self._pool.submit(train, places))
                if len(running) > threads:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:
            for future in running:
                future.cancel()
            torch.set_num_threads(threads)
