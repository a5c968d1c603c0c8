"""How much an experiment trains, counted: what the choice of an engine may take is a part of it.

Counts and not seconds: the same experiment is trained by the same engine on every machine, busy or
not. docs/decisions/0026 has the measurements behind the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

Tell: TypeAlias = Callable[[str], None]
"""Called with what is done now, in a few words, before it is done."""

_TRACE = 330
"""Plain training steps that take as long as tracing a step, comparing and trying it."""
_PROGRAM = 10
"""Steps of many clients by autograd that take as long as a program for one more size of a batch."""
_FIT = 5
"""Plain training steps that take as long as a Trainer's start and end around a client's."""
_SHARE = 3
"""Work is at least so many times what is spent to do it faster."""


class Work(NamedTuple):
    """What all clients do in all rounds of an experiment."""

    rounds: int
    fits: int
    """Trainings of one client in one round."""
    steps: int
    """Training steps of all fits."""

    @property
    def least(self) -> int:
        """Steps, with those that a fit stands for, from which on a program is worth its trace."""
        return _SHARE * _TRACE

    @property
    def is_worth_tracing(self) -> bool:
        """Whether tracing a step takes no more than a third of the clients' training."""
        return self.steps + _FIT * self.fits >= self.least

    def is_worth_a_program(self, steps: int) -> bool:
        """Whether a program for one more size takes no more than a third of its steps.

        Parameters
        ----------
        steps : int
            Steps of that size in a round.
        """
        return steps * self.rounds >= _SHARE * _PROGRAM


def silent(_: str) -> None:
    """Tell nobody."""
