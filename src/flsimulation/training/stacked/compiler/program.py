"""A module's training step for many clients at once, as a program without autograd.

The step is traced twice, for two numbers of clients and two sizes of a batch, with the clients'
parameters stacked along a first axis. What differs between the two graphs tells which of their
numbers stand for clients and examples, so that a program for any other size is written down from
them without a trace. docs/decisions/0012 has the reasons and the figures.
"""

from __future__ import annotations

import copy
import functools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.fx import Graph

from flsimulation.data.leaves import Leaves, first
from flsimulation.training.form import PAIR, Form
from flsimulation.training.logged import Log, Logged
from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.stacked.compiler import passes as passes
from flsimulation.training.stacked.compiler.apart import Apart, Run
from flsimulation.training.stacked.compiler.comparison import are_close, exactly, has_moved
from flsimulation.training.stacked.compiler.draws import Draw
from flsimulation.training.stacked.compiler.eager import EagerStep
from flsimulation.training.stacked.compiler.given import Given, Step
from flsimulation.training.stacked.compiler.same import is_same_alone
from flsimulation.training.stacked.compiler.step import (
    NotStackable,
    StepFails,
    WritesInPlace,
    stacked_step,
)
from flsimulation.training.stacked.compiler.template import template_of, written
from flsimulation.training.stacked.compiler.torchscript import compiled
from flsimulation.training.stacked.compiler.trace import traced
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
    constants : mapping
        Numbers of the Trainer that are the same in all fits.
    scaled : bool
        Whether losses are scaled before gradients are taken.

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
        constants: Mapping[str, Any] = MappingProxyType({}),
        *,
        scaled: bool = False,
    ) -> None:
        tell("tracing the training step")
        self._eager = EagerStep(module, x, y, form, constants=constants, scaled=scaled)
        self.names = self._eager.names
        """Names of the module's tensors, by what becomes of them."""
        self.how: list[Logged] = []
        """How the logged values are logged."""
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._lock = threading.RLock()
        self._templates: dict[tuple[float, ...] | None, list[Any] | None] = {}
        self._graphs = self._all_traced()
        self._template(None)  # or NotStackable, now
        self.written_bytes = passes.written(self._graphs[0]) // math.prod(_TRACED[0])
        """Bytes that a step writes for each example."""
        self._eps = passes.coarsest(self._graphs[0])
        tell("comparing many clients' step with one client's")
        with exactly():
            for examples in (_TRACED[0][1], 1):
                if self.failure(examples) is None and not is_same_alone(
                    self._eager, _TRACED[0][0], examples, self._eps
                ):
                    raise NotStackable("training_step does something else for many clients at once")

    def program(
        self, clients: int, examples: int, rates: tuple[float, ...] | None = None
    ) -> Callable[[Given], Step]:
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
            Of what the step is taken from; with rates, its parameters are changed in place.

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

    def by_autograd(self, rates: tuple[float, ...] | None = None) -> Callable[[Given], Step]:
        """What `program` returns, but for any size and without making a program."""
        return functools.partial(self._by_autograd, rates)

    def apart(self, run: Run) -> Callable[[Given, tuple[float, ...] | None], Step]:
        """What `program` returns, but for any size and rates, and each client's step by itself.

        Parameters
        ----------
        run : callable
            Does the clients' steps.

        Raises
        ------
        NotStackable
            If that is not the step, by a comparison with autograd.
        """
        step = Apart(self._eager, run)
        if not any(self._is_step(step, *_TRACED[0], None, scale) for scale in _SCALES):
            raise NotStackable("training_step does something else for each client alone")
        return lambda given, rates: _descended(step(given), given, rates)

    def eager(self, given: Given) -> Step:
        """The same step by vmap and autograd, for any sizes. Raises `NotStackable`."""
        with self._lock:  # no two threads may be in vmap at once
            step, how = self._eager.stacked(given)
        self._check_same(how, first(given.x).shape[1])
        return step

    def draws(self, examples: int) -> list[Draw]:
        """What one client's step draws, for a size of a batch. Raises `NotStackable`."""
        with self._lock:
            return self._eager.observed(examples).draws

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Raise `NotStackable` if the step does something else for one of these sizes.

        That it fails for one is the business of the clients with such a batch, unless it is the
        last of the sizes.
        """
        for examples in sizes:
            if self.failure(examples) is None or examples == sizes[-1]:
                self._check_same(self._eager.observed(examples).how, examples)

    def failure(self, examples: int) -> str | None:
        """What a client's step raises for a size of a batch, in one line; None if it does not."""
        try:
            self.draws(examples)
        except StepFails as failure:
            return failure.error
        return None

    def given(self, clients: int, examples: int) -> Given:
        """What a program takes: the module's own tensors for all clients, real examples."""
        return self._eager.given(clients, examples)

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

    def _run(self, run: Callable[..., Any], given: Given) -> Step:
        return Step.taken(run(*given.tensors()), len(self.how), len(self.names.moving))

    def _by_autograd(self, rates: tuple[float, ...] | None, given: Given) -> Step:
        return _descended(self.eager(given), given, rates)

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
        given = self._eager.given(clients, examples, [scale] * clients)
        trained, moved = given.trained, [tensor.clone() for tensor in given.trained]
        with exactly(), torch.no_grad():
            theirs = self.eager(given)
            try:
                ours = run(given._replace(trained=moved))
                if rates is not None:  # it returns no gradients; without its steps it does
                    plain = written(self._templates[None] or [], clients, examples)
                    ours = self._run(plain, given)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                return False  # numbers that no size but the traced ones allows
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

    def _all_traced(self) -> list[Graph]:
        """The graphs for both sizes; a second time where the step writes into its own tensors."""
        try:
            return [self._traced(*sizes) for sizes in _TRACED]
        except WritesInPlace:
            self._eager.writes = True
            return [self._traced(*sizes) for sizes in _TRACED]

    def _traced(self, clients: int, examples: int) -> Graph:
        given = self._eager.given(clients, examples)
        inputs = given._replace(draws=()).tensors()
        log, split = Log(training=True), len(given.trained)
        module = self._eager.watched(log)

        def step(*tensors: Tensor) -> Any:
            own = given.filled(tensors)
            return stacked_step(
                module, self.names, own, self._eager.form, writes=self._eager.writes
            )

        draws = self._eager.observed(examples).draws
        graph = traced(step, module, inputs, split, draws)
        if self.how:
            self._check_same(log.how, examples)
        else:
            self.how = [logged.for_size(examples) for logged in log.how]
        return graph

    def _check_same(self, how: list[Logged], examples: int) -> None:
        """Values must be logged in the same way for every size."""
        if self.how != how and self.how != [logged.for_size(examples) for logged in how]:
            raise NotStackable("training_step logs something else for other sizes of a batch")


def _descended(step: Step, given: Given, rates: tuple[float, ...] | None) -> Step:
    """The step, after plain SGD's with its gradients where there are rates."""
    if rates is None:
        return step
    for tensor, gradient, rate in zip(given.trained, step.gradients, rates, strict=True):
        if gradient is not None:
            tensor.sub_(gradient, alpha=rate)
    return step._replace(gradients=[None] * len(given.trained))
