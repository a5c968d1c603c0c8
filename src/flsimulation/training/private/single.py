"""The clipped gradients of single examples, one example after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flsimulation.data.leaves import Leaves, one
from flsimulation.training.logged import Log
from flsimulation.training.private.gradients import Clipped, Examples, shares
from flsimulation.training.stacked.compiler.draws import serving
from flsimulation.training.stacked.compiler.eager import EagerStep
from flsimulation.training.stacked.compiler.step import facts_of, loss_of


class OneByOne:
    """Each example's gradient by itself, for steps that are not to be taken at once.

    Parameters
    ----------
    eager : EagerStep
        The module's step.
    clip : float
        Largest norm of one example's gradient.
    """

    def __init__(self, eager: EagerStep, clip: float) -> None:
        self._names, self._clip, self._form = eager.names, clip, eager.form
        self._log = Log(training=True)
        self._module = eager.watched(self._log)
        facts_of(self._module).values = {}
        self.how = eager.observed(1).how
        """How values are logged."""
        self._leaves = [self._module.get_parameter(name) for name in self._names.trained]

    def __call__(self, trained: Sequence[Tensor], examples: Examples) -> Clipped:
        """Take a step."""
        x, y, kept, draws = examples
        sums = [torch.zeros_like(tensor) for tensor in trained]
        losses, squares = torch.zeros_like(kept), torch.zeros_like(kept)
        logged = [torch.zeros_like(kept) for _ in self.how]
        for client in range(len(kept)):
            with torch.no_grad():
                for leaf, tensor in zip(self._leaves, trained, strict=True):
                    leaf.copy_(tensor[client])
            for place in range(kept.shape[1]):
                at = slice(place, place + 1)
                with serving([numbers[client, place] for numbers in draws]):
                    loss, gradients = self._single(one(one(x, client), at), one(one(y, client), at))
                square = sum(g.square().sum() for g in gradients)
                squares[client, place], losses[client, place] = square, loss
                for into, value in zip(logged, self._log.values, strict=True):
                    into[client, place] = value
                share = shares(squares[client, place], self._clip, kept[client, place])
                if share > 0:
                    for total, gradient in zip(sums, gradients, strict=True):
                        total[client] += share * gradient
        return Clipped(losses, logged, sums, squares.sqrt())

    def _single(self, x: Leaves, y: Leaves) -> tuple[Tensor, list[Tensor]]:
        self._log.how.clear()
        self._log.values.clear()
        with torch.enable_grad():
            loss, _ = loss_of(self._module, x, y, self._form)
            found = torch.autograd.grad(loss, self._leaves, allow_unused=True)
        gradients = [
            torch.zeros_like(leaf) if g is None else g
            for leaf, g in zip(self._leaves, found, strict=True)
        ]
        return loss.detach(), gradients
