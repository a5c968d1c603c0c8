"""Each client's step by itself, by autograd: no vmap and no trace, so with PyTorch's fastest convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call

from flsimulation.data.leaves import one
from flsimulation.training.logged import Log
from flsimulation.training.stacked.compiler.draws import Served
from flsimulation.training.stacked.compiler.eager import EagerStep
from flsimulation.training.stacked.compiler.given import Given, Step
from flsimulation.training.stacked.compiler.step import NotStackable, Whole, prefixed

Run: TypeAlias = Callable[[Sequence[Callable[[], None]]], None]
"""Does works of which none needs another's results."""


class Apart:
    """Takes each client's step on tensors of its own.

    Parameters
    ----------
    eager : EagerStep
        The module's.
    run : callable
        Does the clients' steps, one after the other or side by side.

    Raises
    ------
    NotStackable
        If the step computes with numbers of the fit, which a tensor of all clients holds.
    """

    def __init__(self, eager: EagerStep, run: Run) -> None:
        if eager.names.facts:
            raise NotStackable("training_step computes with numbers of the fit")
        self._names, self._run, self._log = eager.names, run, Log(training=True)
        module = eager.watched(self._log)
        self._whole = Whole(module, eager.form, moving=eager.names.moving)

    def __call__(self, given: Given) -> Step:
        """All clients' step."""
        found = dict[int, _Taken]()

        def take(place: int) -> None:
            found[place] = self._taken(given, place)

        clients = range(len(given.trained[0]))
        self._run([functools.partial(take, place) for place in clients])
        losses, *lists = zip(*(found[place] for place in clients), strict=True)
        logged, moved, gradients = (
            [_many(own) for own in zip(*each, strict=True)] for each in lists
        )
        return Step(torch.stack(losses), logged, moved, gradients)

    def _taken(self, given: Given, place: int) -> _Taken:
        self._log.how.clear()
        self._log.values.clear()
        with torch.enable_grad(), Served([tensor[place] for tensor in given.draws]):
            own = [tensor[place].detach().requires_grad_() for tensor in given.trained]
            moving = [tensor[place].clone() for tensor in given.moving]
            tensors = {
                **prefixed(self._names.trained, own),
                **prefixed(self._names.moving, moving),
                **prefixed(self._names.shared, given.shared),
            }
            batch = one(given.x, place), one(given.y, place)
            loss, moved = functional_call(self._whole, tensors, batch)
            (seed,) = given.of(place).seeds(loss.detach()[None])
            gradients = torch.autograd.grad(loss, own, seed, allow_unused=True)
        logged = [value.detach() for value in self._log.values]
        return _Taken(loss.detach(), logged, [own.detach() for own in moved], [*gradients])


class _Taken(NamedTuple):
    """What a `Step` has, of one client."""

    loss: Tensor
    logged: list[Tensor]
    moved: list[Tensor]
    gradients: list[Tensor | None]


def _many(own: Sequence[Any]) -> Any:
    """Of one client each, [clients, ...]; None where they have none."""
    return None if own[0] is None else torch.stack([*own])
