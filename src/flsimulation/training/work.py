"""How much an experiment trains, counted: what the choice of an engine may take is a part of it.

Counts and not seconds decide what is tried, so that a busy machine tries what an idle one does.
docs/decisions/0026 has the measurements behind the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

Tell: TypeAlias = Callable[[str], None]
"""Called with what is done now, in a few words, before it is done."""

_TRACED = 1000
"""Time of tracing a step, comparing and trying it, for each of its calls; the unit is a call's time."""
_TRACED_AGAIN = 1.6
"""Times that, where a step writes in place and its trace is made a second time without that."""
_STEP = 150
"""Time of a Trainer's step beside its calls, in the same unit."""
_FIT = 500
"""Time of a Trainer's start and end around a client's steps, in the same unit."""
_PROGRAM = 10
"""Steps of many clients by autograd that take as long as a program for one more size of a batch."""
_SHARE = 3
"""Work is at least so many times what is spent to do it faster."""


class Calls(NamedTuple):
    """What one client's training step calls."""

    made: int
    """ATen's calls, those of the gradients included."""
    writes: bool
    """Whether one of them writes in place."""


class Work(NamedTuple):
    """What all clients do in all rounds of an experiment."""

    rounds: int
    fits: int
    """Trainings of one client in all rounds."""
    steps: int
    """Training steps of all fits."""
    examples: float = math.inf
    """Of a client's training part, on average."""

    @property
    def cohort(self) -> int:
        """Trainings of one client in one round."""
        return max(1, self.fits // max(1, self.rounds))

    def repeated(self, times: int) -> Work:
        """The same in so many times the rounds."""
        return Work(self.rounds * times, self.fits * times, self.steps * times, self.examples)

    def is_worth_tracing(self, calls: Calls) -> bool:
        """Whether tracing such a step takes no more than a third of the clients' training."""
        spent = _TRACED * calls.made * (_TRACED_AGAIN if calls.writes else 1)
        return self.steps * (_STEP + calls.made) + self.fits * _FIT >= _SHARE * spent

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
