"""Clients that train together, in halves of their number where memory does not hold them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flsimulation.host.warned import NOBODY, Warned, pass_on
from flsimulation.training.memory import free_unused, is_out_of_memory

Done = TypeVar("Done")


class Halving:
    """Runs waves; one that runs out of memory is run again in two halves.

    Later waves have at most as many clients as the largest that did not.
    """

    def __init__(self) -> None:
        self._most: int | None = None

    def run(self, work: Callable[[list[int]], Done], clients: list[int]) -> list[Done]:
        """The results of ``work`` for all clients: one for each part that memory holds.

        Parameters
        ----------
        work : callable
            Does the work for some clients, from the start at each call.
        clients : list of int
            The clients of a wave.

        Raises
        ------
        Exception
            What ``work`` raises; that memory is too small only where it is for a single client.
        """
        if self._most is not None and len(clients) > self._most:
            return self._in_halves(work, clients)
        try:
            return [work(clients)]
        except Exception as error:
            if len(clients) == 1 or not is_out_of_memory(error):
                raise
        free_unused()  # not in the handler, where the error still holds its frames
        self._lower(len(clients))
        return self._in_halves(work, clients)

    def _in_halves(self, work: Callable[[list[int]], Done], clients: list[int]) -> list[Done]:
        half = -(-len(clients) // 2)
        return [*self.run(work, clients[:half]), *self.run(work, clients[half:])]

    def _lower(self, clients: int) -> None:
        most = -(-clients // 2)
        self._most = most if self._most is None else min(self._most, most)
        text = (
            f"memory does not hold {clients} clients that train at once; they train in smaller groups, "
            f"which takes longer (lower train.batch-size for larger ones)"
        )
        pass_on([Warned(NOBODY, text)])  # of texts that differ in numbers only the first is kept
