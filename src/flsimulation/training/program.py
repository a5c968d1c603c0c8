"""A module's training step for many clients at once, as a program without autograd.

The step is traced twice, for two numbers of clients and two sizes of a batch, with the clients'
parameters stacked along a first axis. What differs between the two graphs tells which of their
numbers stand for clients and examples, so that a program for any other size is written down from
them without a trace. docs/decisions/0012 has the reasons and the figures.
"""

from __future__ import annotations

import copy
import functools
import random
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from flsimulation.errors import describe_error
from flsimulation.training import graph as passes
from flsimulation.training.logged import CannotTake, Log, Logged
from flsimulation.training.script import compiled
from flsimulation.training.step import NotStackable, stacked_step, watched
from flsimulation.training.template import template_of, written

_TRACED = ((2, 5), (3, 7))  # clients and examples; primes, so that products tell their factors
_TINY = 1e-6
_APART = 1e-3  # relative difference from autograd at which a program is not the step's


class Step(NamedTuple):
    """What a program gives for one batch of each client."""

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
        self._module = copy.deepcopy(module).train()
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
        self._sound: dict[tuple[int, int], bool] = {}
        self._templates: dict[tuple[float, ...] | None, list[Any] | None] = {}
        self._graphs = [self._traced(*sizes) for sizes in _TRACED]
        self._template(None)  # or NotStackable, now

    def program(
        self, clients: int, examples: int, rates: tuple[float, ...] | None = None
    ) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, Tensor], Step]:
        """The program for so many clients with batches of so many examples.

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
        """The same step by vmap and autograd, for any sizes."""
        with self._lock, torch.enable_grad():  # no two threads may be in vmap at once
            leaves = [tensor.detach().requires_grad_() for tensor in trained]
            log = Log(training=True)
            module = watched(copy.deepcopy(self._module), log)
            values = stacked_step(module, self.trained, self.shared, leaves, shared, x, y)
        return self._as_step(values)

    # --- from here on: how a program is made ---

    def _built(
        self, clients: int, examples: int, rates: tuple[float, ...] | None
    ) -> Callable[..., Step]:
        template = self._template(rates)
        if template is None or not self._is_sound(clients, examples):
            return functools.partial(self._by_autograd, rates)
        run = compiled(written(template, clients, examples))
        return functools.partial(self._run, run)

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

    def _is_sound(self, clients: int, examples: int) -> bool:
        """Whether the program for these sizes is the step's, by a comparison with autograd.

        A step may well do something else for other sizes than those it was traced for.
        """
        if (known := self._sound.get((clients, examples))) is not None:
            return known
        template, inputs, split = (
            self._template(None),
            self._inputs(clients, examples),
            len(self.trained),
        )
        assert template is not None  # noqa: S101 - only steps in place may have none
        ours = self._as_step(compiled(written(template, clients, examples))(*inputs))
        theirs = self.eager(inputs[:split], inputs[split:-2], inputs[-2], inputs[-1])
        sound = len(ours.logged) == len(theirs.logged) and all(
            _are_close(one, other)
            for one, other in zip(
                (ours.losses, *ours.logged, *ours.gradients),
                (theirs.losses, *theirs.logged, *theirs.gradients),
                strict=True,
            )
        )
        self._sound[clients, examples] = sound
        return sound

    def _as_step(self, values: Sequence[Any]) -> Step:
        losses, *rest = values
        logged, gradients = rest[: len(self.how)], rest[len(self.how) :]
        return Step(losses, logged, gradients)

    def _template(self, rates: tuple[float, ...] | None) -> list[Any] | None:
        if rates not in self._templates:
            graphs = [copy.deepcopy(graph) for graph in self._graphs]
            found = None
            if rates is None or all(passes.descend_in_place(graph, rates) for graph in graphs):
                found = template_of(graphs[0], graphs[1], _TRACED)
            self._templates[rates] = found
        return self._templates[rates]

    def _inputs(self, clients: int, examples: int) -> list[Tensor]:
        """Arguments of a program: the module's own weights for all clients, real examples."""
        named = dict(self._module.named_parameters()) | dict(self._module.named_buffers())
        rows = torch.arange(clients * examples) % len(self._x)
        trained = [_repeated(named[name].detach(), clients) for name in self.trained]
        shared = [named[name].detach() for name in self.shared]
        x, y = (t[rows].view(clients, examples, *t.shape[1:]) for t in (self._x, self._y))
        return [*trained, *shared, x, y]

    def _traced(self, clients: int, examples: int) -> Graph:
        inputs = self._inputs(clients, examples)
        split, log = len(self.trained), Log(training=True)
        module = watched(copy.deepcopy(self._module), log)

        def step(*tensors: Tensor) -> Any:
            leaves = list(tensors[:split])
            return stacked_step(
                module, self.trained, self.shared, leaves, tensors[split:-2], *tensors[-2:]
            )

        before, python, legacy = _attributes(module), random.getstate(), _numpy_state()
        tensors = [*(t.requires_grad_() for t in inputs[:split]), *inputs[split:]]
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                traced = make_fx(step)(*tensors)
                if passes.writes_in_place(traced.graph):
                    pure = torch.func.functionalize(traced, remove="mutations")
                    traced = make_fx(pure)(*(t.detach() for t in tensors))
        except (NotStackable, CannotTake) as reason:
            raise NotStackable(f"training_step {reason}") from None
        except (Exception, SystemExit) as error:
            raise NotStackable(_explained(error)) from error
        if (random.getstate(), _numpy_state()) != (python, legacy) or passes.draws_random_numbers(
            traced.graph
        ):
            raise NotStackable("training_step draws random numbers")
        if passes.writes_in_place(traced.graph) or _attributes(module) != before:
            raise NotStackable("training_step changes the module itself")
        self._remember(log, examples)
        passes.simplify(traced.graph, split)
        return _with_constants(traced)

    def _remember(self, log: Log, examples: int) -> None:
        """Keep how values are logged; it must be the same for every size."""
        how = [
            Logged(h.name, h.on_step, h.on_epoch, h.reduction, None)
            if h.batch_size == examples
            else h
            for h in log.how
        ]
        if self.how and how != self.how:
            raise NotStackable("training_step logs something else for other sizes of a batch")
        self.how = how


def _are_close(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    apart = torch.linalg.vector_norm((one - other).double())
    return bool(apart <= _APART * torch.linalg.vector_norm(other.double()) + _TINY)


def _repeated(tensor: Tensor, clients: int) -> Tensor:
    return tensor.expand(clients, *tensor.shape).clone(memory_format=torch.contiguous_format)


def _attributes(module: nn.Module) -> list[Any]:
    """What a step might change of a module beside its tensors."""
    found: list[Any] = []
    for part in module.modules():
        for name, value in vars(part).items():
            size = len(value) if isinstance(value, list | dict | set) else None
            found.append((name, id(value), size, value if isinstance(value, int | float) else None))
    return found


def _numpy_state() -> Any:
    return [str(part) for part in np.random.get_state()]  # noqa: NPY002 - the global stream


def _explained(error: BaseException) -> str:
    text = str(error)
    if "random operation" in text or "randomness" in text:
        return "training_step draws random numbers"
    if "in-place" in text or "inplace" in text:
        return "training_step changes buffers of the module"
    return f"training_step cannot be traced ({describe_error(error)})"


def _with_constants(traced: GraphModule) -> Graph:
    """The graph, with the tensors that it holds as arguments of their calls' meta."""
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            node.meta["constant"] = getattr(traced, str(node.target))
    return traced.graph
