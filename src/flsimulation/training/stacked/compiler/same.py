"""Whether a step of many clients is that of each of them alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.stacked.compiler.comparison import are_alike, are_close, is_half
from flsimulation.training.stacked.compiler.eager import EagerStep
from flsimulation.training.stacked.compiler.given import Step
from flsimulation.training.stacked.compiler.step import NotStackable

_EXACT = 64 * torch.finfo(torch.float64).eps  # sums in a row, of some ten thousand numbers


def is_same_alone(step: EagerStep, clients: int, examples: int, eps: Sequence[float]) -> bool:
    """Whether each client's step alone is what it is among many.

    The weights are not the module's: it may hold them in more ways than those that are stacked. A
    unit whose input is a rounding away from 0 may be on in one way and off in the other, so that
    gradients differ by more than roundings. In float64 no input is as near to 0 as that, so
    that the two ways must agree there, and in the step's own type roughly or for other weights. In half
    precision many units are as near as that.

    Parameters
    ----------
    step : EagerStep
        Of the module.
    clients, examples : int
        How many to compare, and of how many examples each.
    eps : sequence of float
        As of `are_close`.

    Raises
    ------
    NotStackable
        If a step fails.
    """
    pairs = _both_ways(step, clients, examples)
    if all(are_close(*pair, eps) for pair in pairs):
        return True
    try:
        exact = _both_ways(step.in_double(), clients, examples)
    except (NotStackable, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False  # the step insists on its own types
    if not all(are_close(*pair, [_EXACT] * len(eps)) for pair in exact):
        return False
    if is_half(max(eps)) or all(are_alike(*pair) for pair in pairs):
        return True
    others = _both_ways(step, clients, examples, clients)
    return all(are_close(*pair, eps) for pair in others)


def _both_ways(
    step: EagerStep, clients: int, examples: int, draw: int = 0
) -> list[tuple[Step, Step]]:
    """Each client's step as one of many, and alone; with another number, for other weights."""
    scales = [1.01 + 0.01 * (place + draw) for place in range(clients)]
    given = step.given(clients, examples, scales)
    together, _ = step.stacked(given)
    return [
        (together.of(slice(place, place + 1)), step.alone(given.of(place)))
        for place in range(clients)
    ]
