"""A module's training step for many clients at once, as a program without autograd.

The step is traced twice, for two numbers of clients and two sizes of a batch, with the clients'
parameters stacked along a first axis. What differs between the two graphs tells which of their
numbers stand for clients and examples, so that a program for any other size is written down from
them without a trace. docs/decisions/0012 has the reasons and the figures.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.fx import Graph

from flsimulation import seeds
from flsimulation.data.leaves import Leaves, first, leaves, one, refilled
from flsimulation.errors import describe_error
from flsimulation.training.form import PAIR, Form
from flsimulation.training.logged import CannotTake, Log, Logged
from flsimulation.training.stacked.compiler import passes as passes
from flsimulation.training.stacked.compiler.comparison import are_close, exactly, has_moved
from flsimulation.training.stacked.compiler.eager import EagerStep, is_same_alone
from flsimulation.training.stacked.compiler.step import (
    NotStackable,
    Step,
    WritesInPlace,
    loss_of,
    stacked_step,
    watched,
)
from flsimulation.training.stacked.compiler.template import template_of, written
from flsimulation.training.stacked.compiler.torchscript import compiled
from flsimulation.training.stacked.compiler.trace import refusal, traced
from flsimulation.training.stacked.effects import random_states
from flsimulation.training.work import Tell, silent

_TRACED = ((2, 11), (3, 13))
"""Clients and examples: primes, so that products tell their factors, and such that the numbers
beside them (10 and 12, say) are in no ratio that these could have."""
_SCALES = (1.0, 1.01)
"""Of the weights for which a program is compared with autograd. It does the same for all, so that
agreement once is enough; a unit that is on in one way and off in the other is so for one."""


class StepPrograms:
    """Programs of one module's training step, by number of clients and examples.

    Parameters
    ----------
    module : LightningModule
        The model; copied.
    x, y : Tensor or dict of Tensor
        Examples of the data set, [n, ...]; n may be small.
    form : Form
        What the step receives.
    tell : callable
        Called with what is done now.

    Raises
    ------
    NotStackable
        If the step cannot be traced, or means something else for other sizes.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        x: Leaves,
        y: Leaves,
        form: Form = PAIR,
        tell: Tell = silent,
    ) -> None:
        tell("tracing the training step")
        self._eager = EagerStep(module, x, y, form)
        self._module = self._eager.module
        self.trained, self.shared = self._eager.trained, self._eager.shared
        """Names of the parameters that are stacked, tied ones once, and of all that is not."""
        self.how: list[Logged] = []
        """How the logged values are logged."""
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._lock = threading.RLock()
        self._templates: dict[tuple[float, ...] | None, list[Any] | None] = {}
        self._graphs = self._all_traced()
        self._template(None)  # or NotStackable, now
        self._eps = passes.coarsest(self._graphs[0])
        tell("comparing many clients' step with one client's")
        with exactly():
            if not is_same_alone(self._eager, *_TRACED[0], self._eps):
                raise NotStackable("training_step does something else for many clients at once")

    def program(
        self, clients: int, examples: int, rates: tuple[float, ...] | None = None
    ) -> Callable[[Sequence[Tensor], Sequence[Tensor], Leaves, Leaves], Step]:
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

    def by_autograd(self, rates: tuple[float, ...] | None = None) -> Callable[..., Step]:
        """What `program` returns, but for any size and without making a program."""
        return functools.partial(self._by_autograd, rates)

    def eager(
        self, trained: Sequence[Tensor], shared: Sequence[Tensor], x: Leaves, y: Leaves
    ) -> Step:
        """The same step by vmap and autograd, for any sizes. Raises `NotStackable`."""
        with self._lock:  # no two threads may be in vmap at once
            step, how = self._eager.stacked(trained, shared, x, y)
        self._check_same(how, first(x).shape[1])
        return step

    def check_sizes(self, sizes: Iterable[int]) -> None:
        """Raise `NotStackable` if the step fails, logs otherwise or draws for one of these sizes."""
        for examples in sizes:
            self._check_same(self._alone(examples), examples)

    def inputs(
        self, clients: int, examples: int
    ) -> tuple[list[Tensor], list[Tensor], Leaves, Leaves]:
        """Arguments of a program: the module's own weights for all clients, real examples."""
        return self._eager.inputs(clients, examples)

    # --- from here on: how a program is made ---

    def _built(
        self, clients: int, examples: int, rates: tuple[float, ...] | None
    ) -> Callable[..., Step]:
        template = self._template(rates)
        if template is not None:
            run = functools.partial(self._run, compiled(written(template, clients, examples)))
            if any(self._is_step(run, clients, examples, rates, scale) for scale in _SCALES):
                return run
        return self.by_autograd(rates)

    def _run(
        self,
        run: Callable[..., Any],
        trained: Sequence[Tensor],
        shared: Sequence[Tensor],
        x: Leaves,
        y: Leaves,
    ) -> Step:
        return Step.taken(run(*trained, *shared, *leaves(x), *leaves(y)), len(self.how))

    def _by_autograd(
        self,
        rates: tuple[float, ...] | None,
        trained: Sequence[Tensor],
        shared: Sequence[Tensor],
        x: Leaves,
        y: Leaves,
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
        scale: float,
    ) -> bool:
        """Whether the program for these sizes is the step's, by a comparison with autograd.

        A step may well do something else for other sizes than those it was traced for. Gradients
        are compared as such first: of a small one little is left to see in the parameter.
        """
        trained, shared, x, y = self._eager.inputs(clients, examples, [scale] * clients)
        moved = [tensor.clone() for tensor in trained]
        with exactly(), torch.no_grad():
            theirs = self.eager(trained, shared, x, y)
            try:
                ours = run(moved, shared, x, y)
                if (
                    rates is not None
                ):  # it returns no gradients; the same calls without its steps do
                    plain = written(self._templates[None] or [], clients, examples)
                    ours = self._run(plain, trained, shared, x, y)
            except Exception:  # numbers that no size but the traced ones allows
                return False
        if not are_close(ours, theirs, self._eps):
            return False
        eps = self._eps[-len(trained) :]
        return rates is None or has_moved(trained, moved, theirs.gradients, rates, eps)

    def _template(self, rates: tuple[float, ...] | None) -> list[Any] | None:
        if rates not in self._templates:
            graphs = [copy.deepcopy(graph) for graph in self._graphs]
            found = None
            if rates is None or all(passes.descend_in_place(graph, rates) for graph in graphs):
                found = template_of(graphs[0], graphs[1], _TRACED)
            self._templates[rates] = found
        return self._templates[rates]

    def _alone(self, examples: int) -> list[Logged]:
        """How one client's step logs, without vmap. Raises `NotStackable`."""
        *_, x, y = self.inputs(1, examples)
        log = Log(training=True)
        with seeds.global_streams(0), torch.enable_grad():
            before = random_states()
            try:
                module = watched(copy.deepcopy(self._module), log)
                loss_of(module, one(x, 0), one(y, 0), self._eager.form)
            except (NotStackable, CannotTake) as reason:
                raise refusal(reason) from None
            except (Exception, SystemExit) as error:
                text = f"fails for a batch of {examples} ({describe_error(error)})"
                raise NotStackable(f"training_step {text}") from error
            if random_states() != before:
                raise NotStackable("training_step draws random numbers")
        return log.how

    def _all_traced(self) -> list[Graph]:
        """The graphs for both sizes; a second time where the step writes into its own tensors."""
        try:
            return [self._traced(*sizes) for sizes in _TRACED]
        except WritesInPlace:
            self._alone(_TRACED[0][1])  # raises if what it writes into is the module's
            self._eager.writes = True
            return [self._traced(*sizes) for sizes in _TRACED]

    def _traced(self, clients: int, examples: int) -> Graph:
        trained, shared, x, y = self.inputs(clients, examples)
        split, end = len(trained), len(trained) + len(shared)
        log, given = Log(training=True), [*leaves(x), *leaves(y)]
        module = watched(copy.deepcopy(self._module), log)

        def step(*tensors: Tensor) -> Any:
            batch, inputs = list(tensors[end:]), len(leaves(x))
            return stacked_step(
                module,
                self.trained,
                self.shared,
                tensors[:split],
                tensors[split:end],
                refilled(x, batch[:inputs]),
                refilled(y, batch[inputs:]),
                self._eager.form,
                writes=self._eager.writes,
            )

        graph = traced(step, module, [*trained, *shared, *given], split)
        if self.how:
            self._check_same(log.how, examples)
        else:
            self.how = [logged.for_size(examples) for logged in log.how]
        return graph

    def _check_same(self, how: list[Logged], examples: int) -> None:
        """Values must be logged in the same way for every size."""
        if self.how != how and self.how != [logged.for_size(examples) for logged in how]:
            raise NotStackable("training_step logs something else for other sizes of a batch")
