"""A module's training step for many clients at once, as a program without autograd.

The step is traced twice, for two numbers of clients and two sizes of a batch, with the clients'
parameters stacked along a first axis. What differs between the two graphs tells which of their
numbers stand for clients and examples, so that a program for any other size is written down from
them without a trace. docs/decisions/0012 has the reasons and the figures.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.fx import Graph

from flsimulation import seeds
from flsimulation.errors import describe_error
from flsimulation.training.logged import CannotTake, Log, Logged
from flsimulation.training.stacked.compiler import passes as passes
from flsimulation.training.stacked.compiler.step import (
    NotStackable,
    alone_step,
    are_close,
    exactly,
    loss_of,
    stacked_step,
    watched,
)
from flsimulation.training.stacked.compiler.template import template_of, written
from flsimulation.training.stacked.compiler.torchscript import compiled
from flsimulation.training.stacked.compiler.trace import explained, traced
from flsimulation.training.stacked.effects import random_states

_TRACED = ((2, 11), (3, 13))
"""Clients and examples: primes, so that products tell their factors, and such that the numbers
beside them (10 and 12, say) are in no ratio that these could have."""


class Step(NamedTuple):
    """What a program returns for one batch of each client."""

    losses: Tensor
    """[clients]"""
    logged: list[Tensor]
    """[clients] each."""
    gradients: list[Tensor | None]
    """[clients, ...] for each parameter; None where the loss does not depend on it, or where the
    program has taken the step itself."""


class StepPrograms:
    """Programs of one module's training step, by number of clients and examples.

    Parameters
    ----------
    module : LightningModule
        The model; copied.
    x, y : Tensor
        Examples of the data set, [n, ...]; n may be small.

    Raises
    ------
    NotStackable
        If the step cannot be traced, or means something else for other sizes.
    """

    def __init__(self, module: pl.LightningModule, x: Tensor, y: Tensor) -> None:
        self._module = copy.deepcopy(module)
        self._x, self._y = x, y
        parameters = dict(self._module.named_parameters())
        self.trained = [name for name, p in parameters.items() if p.requires_grad]
        """Names of the parameters that are stacked; tied ones once."""
        self.shared = [name for name, p in parameters.items() if not p.requires_grad]
        self.shared += [name for name, _ in self._module.named_buffers()]
        """Names of the frozen parameters and the buffers, which no client changes."""
        self.how: list[Logged] = []
        """How the logged values are logged."""
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._lock = threading.RLock()
        self._templates: dict[tuple[float, ...] | None, list[Any] | None] = {}
        self._graphs = [self._traced(*sizes) for sizes in _TRACED]
        self._template(None)  # or NotStackable, now
        with exactly():
            self._check_alone(*_TRACED[0])

    def program(
        self, clients: int, examples: int, rates: tuple[float, ...] | None = None
    ) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, Tensor], Step]:
        """The program for a number of clients and of examples per batch.

        Parameters
        ----------
        clients, examples : int
            Both at least 1.
        rates : tuple of float, optional
            Learning rate of each parameter: the program takes plain SGD's steps itself.

        Returns
        -------
        callable
            Of the stacked parameters, the shared tensors, x [clients, examples, ...] and y.

        Raises
        ------
        NotStackable
            If the step fails or logs something else for this size.
        """
        key = clients, examples, rates
        if (known := self._programs.get(key)) is None:
            with self._lock:
                if (known := self._programs.get(key)) is None:
                    known = self._programs[key] = self._built(clients, examples, rates)
        return known

    def can_descend(self, rates: tuple[float, ...]) -> bool:
        """Whether programs can take plain SGD's steps themselves."""
        with self._lock:
            return self._template(rates) is not None

    def eager(
        self, trained: Sequence[Tensor], shared: Sequence[Tensor], x: Tensor, y: Tensor
    ) -> Step:
        """The same step by vmap and autograd, for any sizes. Raises `NotStackable`."""
        log = Log(training=True)
        with self._lock, torch.enable_grad():  # no two threads may be in vmap at once
            leaves = [tensor.detach().requires_grad_() for tensor in trained]
            module = watched(copy.deepcopy(self._module), log)
            try:
                values = stacked_step(module, self.trained, self.shared, leaves, shared, x, y)
            except (Exception, SystemExit) as error:
                raise NotStackable(explained(error)) from error
        self._check_same(log.how, x.shape[1])
        return self._as_step(values)

    def check_sizes(self, sizes: Iterable[int]) -> None:
        """Raise `NotStackable` if the step fails, logs otherwise or draws for one of these sizes."""
        for examples in sizes:
            *_, x, y = self.inputs(1, examples)
            log = Log(training=True)
            with seeds.global_streams(0), torch.no_grad():
                before = random_states()
                try:
                    loss_of(watched(copy.deepcopy(self._module), log), x[0], y[0])
                except (NotStackable, CannotTake) as reason:
                    raise NotStackable(explained(reason)) from None
                except (Exception, SystemExit) as error:
                    text = f"fails for a batch of {examples} ({describe_error(error)})"
                    raise NotStackable(f"training_step {text}") from error
                if random_states() != before:
                    raise NotStackable("training_step draws random numbers")
            self._check_same(log.how, examples)

    # --- from here on: how a program is made ---

    def _built(
        self, clients: int, examples: int, rates: tuple[float, ...] | None
    ) -> Callable[..., Step]:
        template = self._template(rates)
        if template is not None:
            run = functools.partial(self._run, compiled(written(template, clients, examples)))
            if self._is_step(run, clients, examples, rates):
                return run
        return functools.partial(self._by_autograd, rates)

    def _run(
        self,
        run: Callable[..., Any],
        trained: Sequence[Tensor],
        shared: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
    ) -> Step:
        return self._as_step(run(*trained, *shared, x, y))

    def _by_autograd(
        self,
        rates: tuple[float, ...] | None,
        trained: Sequence[Tensor],
        shared: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
    ) -> Step:
        step = self.eager(trained, shared, x, y)
        if rates is None:
            return step
        for tensor, gradient, rate in zip(trained, step.gradients, rates, strict=True):
            if gradient is not None:
                tensor.sub_(gradient, alpha=rate)
        return step._replace(gradients=[None] * len(trained))

    def _is_step(
        self,
        run: Callable[..., Step],
        clients: int,
        examples: int,
        rates: tuple[float, ...] | None,
    ) -> bool:
        """Whether the program for these sizes is the step's, by a comparison with autograd.

        A step may well do something else for other sizes than those it was traced for.
        """
        trained, shared, x, y = self.inputs(clients, examples)
        moved = [tensor.clone() for tensor in trained]
        with exactly(), torch.no_grad():
            theirs = self._by_autograd(rates, moved, shared, x, y)
            try:
                ours = run(trained, shared, x, y)
            except Exception:  # numbers that no size but the traced ones allows
                return False
        return all(
            are_close(one, other)
            for one, other in zip(
                (ours.losses, *ours.logged, *ours.gradients, *trained),
                (theirs.losses, *theirs.logged, *theirs.gradients, *moved),
                strict=True,
            )
        )

    def _as_step(self, values: Sequence[Any]) -> Step:
        losses, *rest = values
        return Step(losses, rest[: len(self.how)], rest[len(self.how) :])

    def _template(self, rates: tuple[float, ...] | None) -> list[Any] | None:
        if rates not in self._templates:
            graphs = [copy.deepcopy(graph) for graph in self._graphs]
            found = None
            if rates is None or all(passes.descend_in_place(graph, rates) for graph in graphs):
                found = template_of(graphs[0], graphs[1], _TRACED)
            self._templates[rates] = found
        return self._templates[rates]

    def inputs(
        self, clients: int, examples: int
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Arguments of a program: the module's own weights for all clients, real examples."""
        named = dict(self._module.named_parameters()) | dict(self._module.named_buffers())
        rows = torch.arange(clients * examples) % len(self._x)
        trained = [torch.stack([named[name].detach()] * clients) for name in self.trained]
        shared = [named[name].detach() for name in self.shared]
        x, y = (t[rows].view(clients, examples, *t.shape[1:]) for t in (self._x, self._y))
        return trained, shared, x, y

    def _traced(self, clients: int, examples: int) -> Graph:
        trained, shared, x, y = self.inputs(clients, examples)
        split, log = len(trained), Log(training=True)
        module = watched(copy.deepcopy(self._module), log)

        def step(*tensors: Tensor) -> Any:
            leaves = list(tensors[:split])
            return stacked_step(
                module, self.trained, self.shared, leaves, tensors[split:-2], *tensors[-2:]
            )

        graph = traced(step, module, [*trained, *shared, x, y], split)
        if self.how:
            self._check_same(log.how, examples)
        else:
            self.how = [logged.for_size(examples) for logged in log.how]
        return graph

    def _check_same(self, how: list[Logged], examples: int) -> None:
        """Values must be logged in the same way for every size."""
        if self.how != how and self.how != [logged.for_size(examples) for logged in how]:
            raise NotStackable("training_step logs something else for other sizes of a batch")

    def _check_alone(self, clients: int, examples: int) -> None:
        """Compare the stacked step with each client's own, for weights that are not the module's.

        A module may hold its weights in more ways than those that are stacked.
        """
        trained, shared, x, y = self.inputs(clients, examples)
        for place, tensor in itertools.product(range(clients), trained):
            tensor[place] *= 1.01 + 0.01 * place
        stacked = self.eager(trained, shared, x, y)
        for place in range(clients):
            log = Log(training=True)
            module = watched(copy.deepcopy(self._module), log)
            own = [tensor[place] for tensor in trained]
            try:
                found = self._as_step(alone_step(module, self.trained, own, x[place], y[place]))
            except CannotTake as reason:
                raise NotStackable(f"training_step {reason}") from None
            pairs = zip(
                (stacked.losses, *stacked.logged, *stacked.gradients),
                (found.losses, *found.logged, *found.gradients),
                strict=True,
            )
            if not all(are_close(one if one is None else one[place], two) for one, two in pairs):
                raise NotStackable("training_step does something else for many clients at once")
