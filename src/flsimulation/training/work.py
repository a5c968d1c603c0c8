"""How much an experiment trains, counted: a step is traced where the run is not over later for it.

Counts and not seconds decide what is tried, so that a busy machine tries what an idle one does.
docs/decisions/0026 has the measurements behind the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

Tell: TypeAlias = Callable[[str], None]
"""Called with what is done now, in a few words, before it is done."""

_TRACED = 500
"""Time of tracing a step, comparing and trying it, for each of its calls; the unit is a call's time."""
_SAVED = 0.5
"""Part of a small step's time that taking it for many clients at once saves."""
_SAVED_ON_GPU = 1.5
"""The same on a GPU, whose calls take twice the time from Python: most of both is saved."""
_TRACED_AGAIN = 1.6
"""Times that, where a step writes in place and its trace is made a second time without that."""
_STEP = 30
"""Time of a step of the engine ``direct`` beside its calls, in the same unit."""
_FIT = 100
"""Time of a fit's start and end in that engine, in the same unit."""
_PROCESS = 2000
"""Time of starting one of its processes, in the same unit."""
_RARE = 30
"""Steps of a size that take at least three times as long, by autograd, as a program for the size."""
_RARE_ON_GPU = 10
"""The same on a GPU, which waits for Python meanwhile."""
_WAYS = 48
"""Steps of a cohort that take at least three times as long as measuring both ways of a step on a GPU."""


class Calls(NamedTuple):
    """What one client's training step calls."""

    made: int
    """ATen's calls as they are traced, those of the gradients included."""
    writes: bool
    """Whether one of them writes in place."""
    alone: int
    """ATen's calls as PyTorch makes them: those of a recurrent layer are many more."""


class Work(NamedTuple):
    """What all clients do in all rounds of an experiment."""

    rounds: int
    fits: int
    """Trainings of one client in all rounds."""
    steps: int
    """Training steps of all fits."""
    examples: float = math.inf
    """Of a client's training part, on average."""
    processes: int = 1
    """In which clients train one by one."""
    decided: bool = False
    """Whether it was decided before that they train stacked."""
    gpu: bool = False
    """Whether clients train on one."""

    @property
    def cohort(self) -> int:
        """Trainings of one client in one round."""
        return max(1, self.fits // max(1, self.rounds))

    def repeated(self, times: int) -> Work:
        """The same in so many times the rounds."""
        return self._replace(
            rounds=self.rounds * times, fits=self.fits * times, steps=self.steps * times
        )

    def is_worth_tracing(self, calls: Calls) -> bool:
        """Whether tracing such a step takes no longer than it saves of the training one by one."""
        saved = _SAVED_ON_GPU if self.gpu else _SAVED
        return self.decided or saved * self._one_by_one(calls) >= _traced(calls)

    def _one_by_one(self, calls: Calls) -> float:
        """Time of all fits in the engine ``direct``, its processes' start included."""
        fits = self.steps * (_STEP + calls.alone) + self.fits * _FIT
        started = self.processes if self.processes > 1 else 0
        return fits / self.processes + started * _PROCESS

    def is_worth_a_program(self, steps: int) -> bool:
        """Whether a program for one more size takes no more than a third of its steps' time.

        Parameters
        ----------
        steps : int
            Steps of that size in a round.
        """
        return steps * self.rounds >= (_RARE_ON_GPU if self.gpu else _RARE)

    def is_worth_a_choice(self, clients: int) -> bool:
        """Whether measuring both ways of a step on a GPU takes no more than a third of the training.

        Parameters
        ----------
        clients : int
            That train at a time.
        """
        return self.steps >= _WAYS * clients


def _traced(calls: Calls) -> float:
    """Time of all that is done before clients are trained stacked."""
    return _TRACED * calls.made * (_TRACED_AGAIN if calls.writes else 1)


def silent(_: str) -> None:
    """Tell nobody."""
