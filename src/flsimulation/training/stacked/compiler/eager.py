"""A module's step by autograd: for many clients under vmap, and for each of them alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor

from flsimulation.data.leaves import Leaves, each, first, one
from flsimulation.training.form import PAIR, Form
from flsimulation.training.logged import CannotTake, Log, Logged
from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.stacked.compiler.comparison import are_close, is_half
from flsimulation.training.stacked.compiler.step import (
    NotStackable,
    Step,
    alone_step,
    stacked_step,
    watched,
)
from flsimulation.training.stacked.compiler.trace import refusal


class EagerStep:
    """The step of a module that nothing has been made of yet.

    Parameters
    ----------
    module : LightningModule
        The model; copied.
    x, y : Tensor or dict of Tensor
        Examples of the data set, [n, ...]; n may be small.
    form : Form
        What the step receives.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        x: Leaves,
        y: Leaves,
        form: Form = PAIR,
        *,
        writes: bool = False,
    ) -> None:
        self.writes = writes
        """Whether the step writes into tensors that it makes."""
        self.module = copy.deepcopy(module)
        self.data, self.form = (x, y), form
        parameters = dict(self.module.named_parameters())
        self.trained = [name for name, p in parameters.items() if p.requires_grad]
        """Names of the parameters that are stacked; tied ones once."""
        self.shared = [name for name, p in parameters.items() if not p.requires_grad]
        self.shared += [name for name, _ in self.module.named_buffers()]
        """Names of the frozen parameters and the buffers, which no client changes."""

    def inputs(
        self, clients: int, examples: int, scales: Sequence[float] | None = None
    ) -> tuple[list[Tensor], list[Tensor], Leaves, Leaves]:
        """Arguments of a step: the module's own weights for all clients, real examples.

        With ``scales`` each client has the weights times a number of its own.
        """
        named = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        rows = torch.arange(clients * examples) % len(first(self.data[0]))
        trained = [torch.stack([named[name].detach()] * clients) for name in self.trained]
        for tensor in trained:
            for own, scale in zip(tensor, scales or (), strict=scales is not None):
                own *= scale
        shared = [named[name].detach() for name in self.shared]

        def taken(tensor: Tensor) -> Tensor:
            return tensor[rows].view(clients, examples, *tensor.shape[1:])

        x, y = (each(taken, part) for part in self.data)
        return trained, shared, x, y

    def stacked(
        self, trained: Sequence[Tensor], shared: Sequence[Tensor], x: Leaves, y: Leaves
    ) -> tuple[Step, list[Logged]]:
        """All clients' step by vmap, and how its values are logged. Raises `NotStackable`."""
        log = Log(training=True)
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in trained]
            module = watched(copy.deepcopy(self.module), log)
            try:
                values = stacked_step(
                    *(module, self.trained, self.shared, leaves, shared, x, y, self.form),
                    writes=self.writes,
                )
            except (Exception, SystemExit) as error:
                if is_out_of_memory(error):
                    raise
                raise refusal(error) from error
        return Step.taken(values, len(log.how)), log.how

    def alone(self, trained: Sequence[Tensor], x: Leaves, y: Leaves) -> Step:
        """One client's step without vmap, as one of many; the client is the first of the stack."""
        log = Log(training=True)
        module = watched(copy.deepcopy(self.module), log)
        try:
            own = [t[0] for t in trained]
            values = alone_step(module, self.trained, own, one(x, 0), one(y, 0), self.form)
        except CannotTake as reason:
            raise NotStackable(f"training_step {reason}") from None
        return Step.taken([None if v is None else v[None] for v in values], len(log.how))

    def in_double(self) -> EagerStep:
        """The same step in float64."""
        x, y = (
            each(lambda t: t.double() if t.is_floating_point() else t, part) for part in self.data
        )
        module = copy.deepcopy(self.module).double()
        return EagerStep(module, x, y, self.form, writes=self.writes)


def is_same_alone(step: EagerStep, clients: int, examples: int, eps: Sequence[float]) -> bool:
    """Whether each client's step alone is what it is among many.

    The weights are not the module's: it may hold them in more ways than those that are stacked. A
    unit whose input is a rounding away from 0 may be on in one way and off in the other, so that
    gradients differ by more than roundings. In float64 no input is as near to 0 as that, so
    that the two ways must agree there, and for other weights in the step's own type. In half
    precision many units are as near as that, whatever the weights.

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
    if _agrees(step, clients, examples, eps, 0):
        return True
    try:
        exact = _agrees(step.in_double(), clients, examples, [0.0] * len(eps), 0)
    except (NotStackable, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False  # the step insists on its own types
    return exact and (is_half(max(eps)) or _agrees(step, clients, examples, eps, 1))


def _agrees(step: EagerStep, clients: int, examples: int, eps: Sequence[float], draw: int) -> bool:
    scales = [1.01 + 0.01 * (place + clients * draw) for place in range(clients)]
    trained, shared, x, y = step.inputs(clients, examples, scales)
    together, _ = step.stacked(trained, shared, x, y)
    places = [slice(place, place + 1) for place in range(clients)]
    return all(
        are_close(
            together.of(own), step.alone([t[own] for t in trained], one(x, own), one(y, own)), eps
        )
        for own in places
    )
