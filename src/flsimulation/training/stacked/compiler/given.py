"""What a step of many clients is taken from, and what it returns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flsimulation.data.leaves import Leaves, leaves, one, refilled


class Step(NamedTuple):
    """What a step of many clients returns for one batch of each."""

    losses: Tensor
    """[clients]"""
    logged: list[Tensor]
    """[clients] each."""
    moved: list[Tensor]
    """[clients, ...] for each buffer that the step changes: what it is afterwards."""
    gradients: list[Tensor | None]
    """[clients, ...] for each parameter; None where the loss does not depend on it, or where the
    program has taken the step itself."""

    def of(self, clients: slice) -> Step:
        """The step of some of the clients."""
        gradients = [None if g is None else g[clients] for g in self.gradients]
        logged, moved = ([t[clients] for t in each] for each in (self.logged, self.moved))
        return Step(self.losses[clients], logged, moved, gradients)

    @classmethod
    def taken(cls, values: Sequence[Any], logged: int, moved: int = 0) -> Step:
        """From a flat sequence: losses, logged values, changed buffers, gradients."""
        losses, *rest = values
        end = logged + moved
        return cls(losses, rest[:logged], rest[logged:end], rest[end:])


class Given(NamedTuple):
    """What a step of many clients is taken from."""

    trained: Sequence[Tensor]
    """The clients' parameters, [clients, ...]."""
    moving: Sequence[Tensor]
    """The clients' buffers that a step changes, [clients, ...]."""
    shared: Sequence[Tensor]
    """All that no client changes."""
    x: Leaves
    """[clients, examples, ...]"""
    y: Leaves
    """[clients, examples, ...]"""
    facts: Sequence[Tensor] = ()
    """Numbers of the fit that are the same for all clients, without an axis."""
    draws: Sequence[Tensor] = ()
    """Random numbers in the order in which the step draws them, [clients, ...]."""
    scales: Sequence[Tensor] = ()
    """What each client's loss is multiplied by before gradients are taken, one float32 [clients];
    none where losses are not scaled."""

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the fields but for the draws, which are last."""
        return [
            *(*self.trained, *self.moving, *self.shared),
            *(*leaves(self.x), *leaves(self.y), *self.facts),
            *(*self.scales, *self.draws),
        ]

    def seeds(self, losses: Tensor) -> Tensor:
        """What gradients of the losses begin with: the clients' scales, or ones; [clients]."""
        if self.scales:
            return self.scales[0].to(losses.dtype)
        return torch.ones(len(losses), dtype=losses.dtype, device=losses.device)

    def filled(self, tensors: Sequence[Tensor]) -> Given:
        """The same with other tensors, in the order of `tensors`, and without draws."""
        rest = iter(tensors)

        def taken(count: int) -> list[Tensor]:
            return list(itertools.islice(rest, count))

        trained, moving, shared = (
            taken(len(part)) for part in (self.trained, self.moving, self.shared)
        )
        x, y = (refilled(part, taken(len(leaves(part)))) for part in (self.x, self.y))
        facts, scales = taken(len(self.facts)), taken(len(self.scales))
        return Given(trained, moving, shared, x, y, facts, scales=scales)

    def of(self, place: int) -> Given:
        """What one client's step is taken from, as one of many."""
        own = slice(place, place + 1)
        trained, moving, draws, scales = (
            [tensor[own] for tensor in part]
            for part in (self.trained, self.moving, self.draws, self.scales)
        )
        x, y = one(self.x, own), one(self.y, own)
        return Given(trained, moving, self.shared, x, y, self.facts, draws, scales)


class Names(NamedTuple):
    """Names of a module's tensors, by what becomes of them."""

    trained: list[str]
    """Parameters that are stacked; tied ones once."""
    moving: list[str]
    """Buffers (and frozen parameters) that a step changes, which are stacked, too."""
    shared: list[str]
    """All others, which no client changes."""
    facts: Sequence[str] = ()
    """Numbers of the fit that the step computes with."""
