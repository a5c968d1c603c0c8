"""The clipped gradients of single examples, summed for each client.

A module's step is taken for batches of one example: what it means for a batch is the mean of these,
which `checks` has seen. Examples whose gradient is not finite count as zero, so that a single one
cannot end a client's training.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves, tree_map

from flsimulation.data.leaves import Leaves, leaves, one, refilled
from flsimulation.training.logged import Log, Logged
from flsimulation.training.private.layers import Layer, Products, layers_of
from flsimulation.training.private.programs import Made, Programs
from flsimulation.training.stacked.compiler import images
from flsimulation.training.stacked.compiler.draws import serving
from flsimulation.training.stacked.compiler.eager import EagerStep
from flsimulation.training.stacked.compiler.rewritten import Rewritten, without_fallback
from flsimulation.training.stacked.compiler.step import Whole, facts_of, loss_of, prefixed
from flsimulation.training.stacked.stack import aliases

_SMALL = 1e-6  # as Opacus adds it to a norm before it divides by it


class _Nested(Rewritten):
    """As for many clients, but with PyTorch's own convolutions: those for clients do not nest."""

    def _called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if func in images.WRITTEN:
            return func(*args, **kwargs)
        return super()._called(func, args, kwargs)


class Examples(NamedTuple):
    """What the clients take in a step."""

    x: Leaves
    """Inputs, [clients, examples, ...]."""
    y: Leaves
    """Labels, [clients, examples, ...]."""
    kept: Tensor
    """Weight of each example, 0 for those that do not count; [clients, examples]."""
    draws: Sequence[Tensor] = ()
    """What each example's step draws, in this order, [clients, examples, ...]; without them a step draws
    from the global generators."""


class Clipped(NamedTuple):
    """What a step of many clients comes to before the noise."""

    losses: Tensor
    """[clients, examples]"""
    logged: list[Tensor]
    """[clients, examples] each."""
    sums: list[Tensor]
    """[clients, ...] for each parameter: the weighted sum of the clipped gradients."""
    norms: Tensor
    """Of the examples' gradients before they were clipped, [clients, examples]."""


class Gradients(Protocol):
    """Computes clipped gradients of single examples."""

    how: list[Logged]
    """How values are logged."""

    def __call__(self, trained: Sequence[Tensor], examples: Examples) -> Clipped:
        """Take a step.

        Parameters
        ----------
        trained : sequence of Tensor
            The clients' parameters, [clients, ...].
        examples : Examples
            What they take.
        """


def shares(squares: Tensor, clip: float, kept: Tensor) -> Tensor:
    """What each example's gradient is multiplied by; 0 where it is not finite."""
    norms = squares.clamp(min=0).sqrt()  # of products rounding may make less than 0
    share = kept * (clip / (norms + _SMALL)).clamp(max=1.0)
    return torch.where(squares.isfinite(), share, torch.zeros_like(share))


class Together:
    """All examples of all clients at once, by vmap and one backward pass.

    Parameters
    ----------
    eager : EagerStep
        The module's step.
    clip : float
        Largest norm of one example's gradient.
    layers : bool
        Whether gradients of layers are written as products where that is possible.
    nested : bool
        Whether clients are taken at once, too; else one after the other.
    made : Made, optional
        Programs of others that take the same steps.

    Raises
    ------
    NotStackable
        If the step cannot be taken for one example.
    """

    def __init__(
        self,
        eager: EagerStep,
        clip: float,
        *,
        layers: bool = True,
        nested: bool = True,
        made: Made | None = None,
    ) -> None:
        self._names, self._clip, self._nested = eager.names, clip, nested
        self._log = Log(training=True)
        self._module = eager.watched(self._log)
        self.how = eager.observed(1).how
        """How values are logged."""
        self._shared = _shared(self._module, eager)
        names = aliases(self._module)
        self._tied = any(name != first for name, first in names.items())
        self._layers: list[Layer] = []
        if layers:
            x, y = eager.given(1, 1).x, eager.given(1, 1).y
            facts_of(self._module).values = {}

            def call() -> object:
                self._log.how.clear()
                self._log.values.clear()
                return loss_of(self._module, one(x, 0), one(y, 0), eager.form)

            self._layers = layers_of(self._module, call, frozenset(self._names.trained))
        self._shapes = {name: p.shape for name, p in self._module.named_parameters()}
        by_products = {name for layer in self._layers for name in layer.parameters}
        self._single = [n for n in self._names.trained if n not in by_products]
        self._received: dict[str, Tensor] = {}
        self._added: dict[str, Tensor] = {}
        for layer in self._layers:
            layer.module.register_forward_hook(self._hook(layer.name))
        self._whole = Whole(
            self._module, eager.form, lambda _: _Nested() if nested else Rewritten()
        )
        self._like = eager.given(1, 1).x, eager.given(1, 1).y
        count = len(self._layers) + len(self._single)
        self._programs = Programs(
            self._by_autograd,
            self._module,
            count,
            len(self._layers),
            made or Made(wanted=nested),
            eager.observed(1).draws,
        )

    @property
    def written_numbers(self) -> int:
        """Numbers that a step keeps for each example."""
        single = sum(self._shapes[name].numel() for name in self._single)
        return single + sum(torch.Size(layer.shape).numel() for layer in self._layers)

    def __call__(self, trained: Sequence[Tensor], examples: Examples) -> Clipped:
        """Take a step."""
        x, y, kept, draws = examples
        sizes = kept.shape
        own = dict(zip(self._names.trained, trained, strict=True))
        single = [
            own[name].detach().unsqueeze(1).expand(*sizes, *own[name].shape[1:])
            for name in self._single
        ]
        added = [kept.new_zeros(()).expand(*sizes, *layer.shape) for layer in self._layers]
        fixed = [own[n].detach() for layer in self._layers for n in layer.parameters]
        batch = [tensor.unsqueeze(2) for part in (x, y) for tensor in leaves(part)]
        self._like = x, y
        found = self._programs([*added, *single, *fixed, *batch], draws)
        wanted = [*added, *single]
        losses, *logged = (t for t in found[: 1 + len(self.how)] if t is not None)
        received = [t for t in found[1 + len(self.how) : -len(wanted)] if t is not None]
        gradients = [
            torch.zeros_like(w) if g is None else g
            for g, w in zip(found[-len(wanted) :], wanted, strict=True)
        ]
        products = [
            Products(layer, a, g)
            for layer, a, g in zip(self._layers, received, gradients[: len(added)], strict=True)
        ]
        rest = [g.reshape(sizes.numel(), -1) for g in gradients[len(added) :]]
        return self._clipped(losses, logged, products, rest, kept)

    def _by_autograd(
        self, tensors: Sequence[Tensor], draws: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        """Losses, what is logged, what the layers received, and gradients."""
        given = iter(tensors)
        added = list(itertools.islice(given, len(self._layers)))
        single = list(itertools.islice(given, len(self._single)))
        fixed = list(itertools.islice(given, sum(len(own.parameters) for own in self._layers)))
        x = refilled(self._like[0], list(itertools.islice(given, len(leaves(self._like[0])))))
        y = refilled(self._like[1], list(given))
        with torch.enable_grad(), without_fallback():
            losses, logged, received = self._of_clients(draws, fixed, single, added, x, y)
            gradients = torch.autograd.grad(losses.sum(), [*added, *single], allow_unused=True)
        return [losses, *logged, *received, *gradients]

    def _of_clients(self, draws: Sequence[Tensor], fixed: list[Tensor], *given: Any) -> Any:
        def of_client(own: list[Tensor], *examples: Any) -> Any:
            # a client's own layers are no argument: vmap goes through all of them several times
            return vmap(functools.partial(self._one, own), randomness="different")(*examples)

        if self._nested:
            with serving(draws):
                return vmap(of_client, randomness="different")(fixed, *given)
        parts = []
        for client in range(len(tree_leaves(given)[0])):
            own = tree_map(operator.itemgetter(client), (fixed, *given))
            with serving([numbers[client] for numbers in draws]):
                parts.append(of_client(*own))
        return tree_map(lambda *tensors: torch.stack(tensors), *parts)

    def _clipped(
        self,
        losses: Tensor,
        logged: list[Tensor],
        products: list[Products],
        rest: list[Tensor],
        kept: Tensor,
    ) -> Clipped:
        squares = sum(
            (
                *(own.squares() for own in products),
                *(torch.linalg.vector_norm(g, dim=1).square() for g in rest),
            ),
            kept.new_zeros(kept.numel()),
        ).view(kept.shape)
        weights = shares(squares, self._clip, kept)
        if not bool(squares.isfinite().all()):
            for own in products:
                own.without_infinities()
            rest = [g.nan_to_num(0.0, 0.0, 0.0) for g in rest]
        sums: dict[str, Tensor] = {}
        for layer, own in zip(self._layers, products, strict=True):
            sums |= zip(layer.parameters, own.sums(weights), strict=True)
        for name, g in zip(self._single, rest, strict=True):
            total = torch.bmm(weights.unsqueeze(1), g.view(*kept.shape, -1))
            sums[name] = total.reshape(len(kept), *self._shapes[name])
        found = [sums[name] for name in self._names.trained]
        return Clipped(losses, logged, found, squares.clamp(min=0).sqrt())

    def _one(
        self,
        fixed: list[Tensor],
        single: list[Tensor],
        added: list[Tensor],
        x: Leaves,
        y: Leaves,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """One example's loss, what it logs, and what the layers received."""
        self._log.how.clear()
        self._log.values.clear()
        self._received.clear()
        self._added = {
            layer.name: tensor for layer, tensor in zip(self._layers, added, strict=True)
        }
        by_products = [name for layer in self._layers for name in layer.parameters]
        given = {**prefixed(self._single, single), **prefixed(by_products, fixed), **self._shared}
        loss, _ = functional_call(self._whole, given, (x, y), tie_weights=self._tied)
        return loss, list(self._log.values), [self._received[own.name] for own in self._layers]

    def _hook(self, name: str) -> Any:
        def add(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor | None:
            if name not in self._added:
                return None
            self._received[name] = args[0]
            return result + self._added[name]

        return add


def _shared(module: nn.Module, eager: EagerStep) -> dict[str, Tensor]:
    """Tensors of the module that no client changes, by their names in a `Whole`."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    names = list(eager.names.shared)
    return prefixed(names, [tensors[name].detach() for name in names])
