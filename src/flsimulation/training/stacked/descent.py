"""The optimizer's steps of a wave's clients, all at once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flsimulation.training.rates import scale_rates
from flsimulation.training.stacked.eligible import clipped, stack_optimizer
from flsimulation.training.stacked.plan import Plan
from flsimulation.training.stacked.stack import Stack, WaveTerms


class Descent:
    """Adds up the clients' gradients, and moves their parameters by them.

    Parameters
    ----------
    stack : Stack
        Of the cohort.
    terms : WaveTerms
        Of the round.
    plan : Plan
        Of the wave's clients.
    leaves : sequence of Tensor
        Their parameters, [clients, ...].
    origin : sequence of Tensor
        The global model's.
    """

    def __init__(
        self,
        stack: Stack,
        terms: WaveTerms,
        plan: Plan,
        leaves: Sequence[Tensor],
        origin: Sequence[Tensor],
    ) -> None:
        self._stack, self._terms, self._plan, self._origin = stack, terms, plan, origin
        self._clients = len(plan.lasts)
        self._optimizer, self._schedulers = stack.optimization(plan.batches, terms.round)
        self.leaves = [nn.Parameter(leaf, requires_grad=False) for leaf in leaves]
        """The same memory as parameters."""
        pairs = zip(stack.parameters, self.leaves, strict=True)
        stack_optimizer(self._optimizer, {id(parameter): leaf for parameter, leaf in pairs})
        scale_rates(self._optimizer, terms.rate_factor)
        self._gradients: list[Tensor | None] = [None] * len(leaves)

    def add(self, gradients: Sequence[Tensor | None], first: int, last: int) -> None:
        """Add gradients of the clients ``first`` to ``last - 1`` to those of the next step."""
        into, batches = self._gradients, self._stack.accumulate
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            if batches > 1:
                gradient = gradient / batches
            if last - first == self._clients and into[index] is None:
                into[index] = gradient.contiguous()  # PyTorch's fused optimizers go by the memory
                continue
            if (whole := into[index]) is None:
                whole = into[index] = self.leaves[index].new_zeros(self.leaves[index].shape)
            whole[first:last] += gradient

    def step(self, turn: int) -> None:
        """One step of the optimizer, for all clients that are not done."""
        gradients = self._clipped(self._drawn(self._gradients))
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        self._optimizer.step()
        self._gradients = [None] * len(self.leaves)
        batch, ends = self._plan.place_in_epoch(turn)
        for scheduler, interval, frequency in self._schedulers:
            number = batch if interval == "step" else ends
            if number and number % frequency == 0:
                scheduler.step()

    def _drawn(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """With FedProx's term; a new list, because two parameters may share a gradient."""
        if (mu := self._terms.proximal_mu) == 0:
            return gradients
        return [
            None if gradient is None else gradient.add(leaf - origin, alpha=mu)
            for gradient, leaf, origin in zip(gradients, self.leaves, self._origin, strict=True)
        ]

    def _clipped(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        if not self._stack.clips:
            return gradients
        moved = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        own: list[Tensor | None] = [
            g if id(p) in moved else None for p, g in zip(self.leaves, gradients, strict=True)
        ]
        for clip in self._stack.clips:
            own = clipped(own, clip)
        return own
