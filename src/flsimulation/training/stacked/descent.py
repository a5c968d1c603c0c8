"""The optimizer's steps of a wave's clients, all at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flsimulation.training.rates import scale_rates
from flsimulation.training.stacked.eligible import FUSED_ON_GPU, clipped, stack_optimizer
from flsimulation.training.stacked.plan import Plan
from flsimulation.training.stacked.scaling import Groups, Scales, finite_clients
from flsimulation.training.stacked.stack import Stack, WaveTerms

_FROM_ZEROS = (torch.optim.Adam, torch.optim.AdamW)
_STATE = "state {} {}"  # of a parameter's place and the name of what is kept


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
        self._gradients: list[Tensor | None] = [None] * len(leaves)
        graphs = stack.graphs if stack.graphs is not None and not stack.graphs.why_not else None
        self._moves = graphs is not None and (bool(self._schedulers) or graphs.rates_move)
        self._rates: list[Tensor] | None = None
        if self._moves and self.why_not_recorded is None:
            like = stack.device, torch.float32  # as fused optimizers read them
            self._rates = [torch.zeros((), device=like[0], dtype=like[1]) for _ in self._groups]
        else:
            scale_rates(self._optimizer, terms.rate_factor)
        self._scales: Scales | None = None
        if stack.scaled:
            self._scales = Scales(self._clients, stack.accumulate, stack.device)
            self._by_group = Groups(self._optimizer, self.leaves)
        self.has_begun = False
        """Whether a step was taken, so that the optimizer has all that it keeps."""

    def scales(self, first: int, last: int) -> list[Tensor]:
        """The scales of the losses of the clients ``first`` to ``last - 1``, if losses are scaled."""
        return [] if self._scales is None else [self._scales.of(first, last)]

    def add(self, gradients: Sequence[Tensor | None], first: int, last: int) -> None:
        """Add gradients of the clients ``first`` to ``last - 1`` to those of the next step."""
        into, batches = self._gradients, self._stack.accumulate
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            if batches > 1 and self._scales is None:  # whose losses are divided
                gradient = gradient / batches
            if last - first == self._clients and into[index] is None:
                into[index] = gradient.contiguous()  # PyTorch's fused optimizers go by the memory
                continue
            if (whole := into[index]) is None:
                whole = into[index] = self.leaves[index].new_zeros(self.leaves[index].shape)
            whole[first:last] += gradient

    def move(self) -> None:
        """One step of the optimizer, for all clients that are not done."""
        with self._at_rates():
            if self._scales is None:
                self._move_all()
            else:
                self._move_finite(self._scales)
        self._gradients = [None] * len(self.leaves)
        self.has_begun = True

    def _move_all(self) -> None:
        gradients = self._clipped(self._drawn(self._gradients))
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        self._optimizer.step()
        for leaf in self.leaves:
            leaf.grad = None

    def _move_finite(self, scales: Scales) -> None:
        """One step of the clients whose gradients are finite; others leave it out."""
        gradients = scales.unscaled(self._gradients)
        finite = finite_clients(self._moved(gradients))
        self._by_group.step(self._clipped(self._drawn(gradients)), finite.tolist())
        scales.update(finite)

    def schedule(self, turn: int) -> None:
        """Have the schedulers step after a turn."""
        batch, ends = self._plan.place_in_epoch(turn)
        for scheduler, interval, frequency in self._schedulers:
            number = batch if interval == "step" else ends
            if number and number % frequency == 0:
                scheduler.step()

    # --- from here on: for graphs of steps ---

    @property
    def why_not_recorded(self) -> str | None:
        """Why a graph cannot hold a step of the optimizer, as the end of a sentence."""
        optimizer = self._optimizer
        if type(optimizer) not in FUSED_ON_GPU or not all(g["fused"] for g in self._groups):
            return f"{type(optimizer).__name__} takes its steps with numbers of the CPU"
        if any(isinstance(own, Tensor) for group in self._options() for own in group):
            return f"the options of {type(optimizer).__name__} are tensors"
        if self._moves and any(p.dtype != torch.float32 for p in self.leaves):
            return "learning rates that change are exact in float32 only"
        return None

    @property
    def form(self) -> Hashable:
        """What a graph of a step is made for."""
        return type(self._optimizer), tuple(map(repr, self._options()))

    @property
    def state(self) -> list[Tensor]:
        """What the optimizer keeps."""
        return [tensor for leaf in self.leaves for _, tensor in self._kept(leaf)]

    def place(self, placed: Callable[[str, Sequence[Tensor]], list[Tensor]]) -> list[Tensor]:
        """Have the parameters and all that a step is taken with at other places; the parameters."""
        leaves = placed("leaves", [leaf.detach() for leaf in self.leaves])
        for index, (leaf, tensor) in enumerate(zip(self.leaves, leaves, strict=True)):
            leaf.data = tensor
            state = self._optimizer.state[leaf]
            state |= {n: placed(_STATE.format(index, n), [t])[0] for n, t in self._kept(leaf)}
        if self._terms.proximal_mu:
            self._origin = placed("origin", [tensor.clone() for tensor in self._origin])
        if self._rates is not None:
            self._rates = placed("rates", self._rates)
        for group in self._groups:
            if "capturable" in group:  # or PyTorch refuses; a fused step is the same
                group["capturable"] = True
        return leaves

    def begin(self, zeroed: Callable[[str], dict[str, Tensor]]) -> bool:
        """Have an optimizer that begins with zeros begin at the places of an earlier one's state.

        Parameters
        ----------
        zeroed : callable
            Returns a state's tensors by name, with zeros in them.
        """
        found = [zeroed(_STATE.format(index, "")) for index in range(len(self.leaves))]
        if type(self._optimizer) not in _FROM_ZEROS or not any(found):
            return False
        if self._schedulers:  # they warn if they step before the optimizer's own first step
            return False
        self._optimizer.state.update(
            (leaf, own) for leaf, own in zip(self.leaves, found, strict=True) if own
        )
        self.has_begun = True
        return True

    def load_rates(self) -> None:
        """Have the learning rates of now where a graph reads them."""
        for tensor, group in zip(self._rates or (), self._groups, strict=self._rates is not None):
            tensor.fill_(group["lr"] * self._terms.rate_factor)

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def _options(self) -> list[list[Any]]:
        """The optimizer's numbers, without those that a graph reads from tensors."""
        moved = {"params", "capturable"} | (
            {"lr", "initial_lr"} if self._rates is not None else set()
        )
        return [
            [v for name, own in sorted(group.items()) if name not in moved for v in _each(own)]
            for group in self._groups
        ]

    def _kept(self, leaf: nn.Parameter) -> list[tuple[str, Tensor]]:
        own = self._optimizer.state.get(leaf, {})
        return [(name, own[name]) for name in sorted(own) if isinstance(own[name], Tensor)]

    @contextlib.contextmanager
    def _at_rates(self) -> Iterator[None]:
        """Have the optimizer read the learning rates from tensors; schedulers have the numbers."""
        if self._rates is None:
            yield
            return
        numbers = [group["lr"] for group in self._groups]
        for group, tensor in zip(self._groups, self._rates, strict=True):
            group["lr"] = tensor
        try:
            yield
        finally:
            for group, number in zip(self._groups, numbers, strict=True):
                group["lr"] = number

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
        own = self._moved(gradients)
        for clip in self._stack.clips:
            own = clipped(own, clip)
        return own

    def _moved(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """The gradients of parameters that the optimizer has; None for others."""
        moved = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        pairs = zip(self.leaves, gradients, strict=True)
        return [gradient if id(leaf) in moved else None for leaf, gradient in pairs]


def _each(option: Any) -> tuple[Any, ...]:
    return option if isinstance(option, tuple) else (option,)
