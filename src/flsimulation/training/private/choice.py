"""The fastest way of a step that has the gradients of single examples, in as many threads as take it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from torch import Tensor

from flsimulation.errors import describe_error
from flsimulation.training.private.checks import in_double, is_same
from flsimulation.training.private.dropout import is_dropout
from flsimulation.training.private.gradients import Clipped, Examples, Gradients, Together
from flsimulation.training.private.programs import Made
from flsimulation.training.private.single import OneByOne
from flsimulation.training.stacked.compiler.eager import EagerStep

_UNCLIPPED = 1e30


class InEachThread:
    """A way of a step that each thread has for itself: a step works with a module that is its own.

    Parameters
    ----------
    make : callable
        Returns a new one.
    """

    def __init__(self, make: Callable[[], Gradients]) -> None:
        self._make, self._made = make, threading.local()
        self.how = make().how
        """How values are logged."""

    def __call__(self, trained: Sequence[Tensor], examples: Examples) -> Clipped:
        """Take a step."""
        if (own := getattr(self._made, "gradients", None)) is None:
            own = self._made.gradients = self._make()
        found: Clipped = own(trained, examples)
        return found


def chosen(
    eager: EagerStep, precise: EagerStep, clip: float
) -> tuple[InEachThread, int, str | None]:
    """The fastest way of a step that is the same as one example after the other.

    Parameters
    ----------
    eager : EagerStep
        The module's step.
    precise : EagerStep
        The same as of `checked`, with which ways are compared; a step that draws is compared with the
        same numbers drawn, too.
    clip : float
        Largest norm of one example's gradient.

    Returns
    -------
    gradients : InEachThread
        The way.
    numbers : int
        What it keeps for each example; 0 if it does not take many at once.
    why_not : str or None
        Why it does not.
    """
    why_not = "its step cannot be taken for many examples at once"
    served = bool(draws := eager.observed(1).draws) and is_dropout(draws)
    compared = [precise, *([in_double(eager)] if served else [])]
    for nested, layers in ((True, True), (True, False), (False, True), (False, False)):
        programs = Made(wanted=nested)

        def make(
            step: EagerStep = eager,
            most: float = clip,
            nested: bool = nested,
            layers: bool = layers,
            made: Made | None = programs,
        ) -> Together:
            return Together(step, most, nested=nested, layers=layers, made=made)

        try:
            if all(is_same(trial := make(step, _UNCLIPPED, made=None), step) for step in compared):
                return InEachThread(make), trial.written_numbers, None
        except Exception as error:  # a user's step may do anything under vmap
            why_not = (
                f"its step cannot be taken for many examples at once ({describe_error(error)})"
            )
    return InEachThread(lambda: OneByOne(eager, clip)), 0, why_not
