"""Programs of steps that have single examples' gradients, made once a shape has come often enough.

Each call by vmap and autograd holds Python's lock for a quarter of a small model's step; a program
does not.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.stacked.compiler.draws import Draw
from flsimulation.training.stacked.compiler.torchscript import compiled
from flsimulation.training.stacked.compiler.trace import traced

aten = torch.ops.aten

_CALLS = 500  # of which a program takes half a second to make
_TRACING = threading.Lock()  # random numbers have one state for all threads meanwhile
OFTEN = 16
"""Calls with tensors of one shape, after which a program for them pays."""

Step = Callable[..., Sequence[Tensor | None]]
"""Of tensors, and of what it draws; returns tensors, and None in place of gradients that do not exist."""
Program = Callable[..., Sequence[Tensor | None]]
"""The same of all these tensors, one after the other."""


@dataclass(eq=False)
class Made:
    """What threads have in common that take the same steps."""

    calls: Counter[Any] = field(default_factory=Counter)
    """By the shapes of the tensors."""
    programs: dict[Any, Program | None] = field(default_factory=dict)
    """None where a program does something else."""
    wanted: bool = True
    """Whether programs are made: not of steps of so many calls that a program would take seconds, and
    on a CPU only, where no fused kernels round otherwise."""


class Programs:
    """A step, by programs for the shapes that come often.

    Parameters
    ----------
    step : callable
        Of the tensors.
    module : Module
        The one that it calls.
    leaves : int
        How many of the first tensors are those of which it takes gradients, its last results.
    zeros : int
        How many of these are zeros, which a program need not add.
    made : Made
        Programs that exist.
    draws : sequence of Draw
        What the step of one example draws.
    """

    def __init__(
        self,
        step: Step,
        module: nn.Module,
        leaves: int,
        zeros: int,
        made: Made,
        draws: Sequence[Draw] = (),
    ) -> None:
        self._step, self._module, self._made = step, module, made
        self._leaves, self._zeros, self._draws = leaves, zeros, draws

    def __call__(
        self, tensors: Sequence[Tensor], numbers: Sequence[Tensor] = ()
    ) -> Sequence[Tensor | None]:
        """Take a step.

        Parameters
        ----------
        tensors : sequence of Tensor
            [clients, examples, ...]
        numbers : sequence of Tensor
            What it draws, [clients, examples, ...].
        """
        form = tuple((t.shape, t.dtype, t.device) for t in (*tensors, *numbers))
        if (program := self._made.programs.get(form)) is not None:
            with torch.no_grad():
                return program(*tensors, *numbers)
        found = self._by_autograd(tensors, numbers)
        self._made.calls[form] += 1
        wanted = self._made.wanted and tensors[0].device.type == "cpu"
        if self._made.calls[form] == OFTEN + 1 and wanted:
            self._made.programs[form] = self._program(tensors, numbers, found)
        return found

    def _by_autograd(
        self, tensors: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors[: self._leaves]]
        with torch.enable_grad():
            found = self._step([*leaves, *tensors[self._leaves :]], numbers)
        return [None if value is None else value.detach() for value in found]

    def _program(
        self,
        tensors: Sequence[Tensor],
        numbers: Sequence[Tensor],
        wanted: Sequence[Tensor | None],
    ) -> Program | None:
        """A program that does the same with these tensors, if there is one."""
        given = [tensor.detach() for tensor in tensors]
        size = tensors[0].shape[1]
        draws = [draw._replace(shape=(size, *draw.shape)) for draw in self._draws]
        try:
            with _TRACING:
                graph = traced(self._traced, self._module, given, self._leaves, draws)
            if len(graph.nodes) > _CALLS:
                self._made.wanted = False
                return None
            _without_zeros(graph, self._zeros)
            program = compiled(_module(graph))
            with torch.no_grad():
                found = program(*(tensor.detach() for tensor in (*tensors, *numbers)))
        except Exception as error:  # a user's step may do what a program cannot
            if is_out_of_memory(error):
                raise
            return None
        return program if all(map(_is_equal, found, wanted)) else None

    def _traced(self, *tensors: Tensor) -> Sequence[Tensor | None]:
        # it draws itself: calls that draw become inputs of the graph
        return self._step(tensors)


def _is_equal(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether all bits are the same: a resumed run makes its programs later than one that was not cut."""
    if one is None or other is None:
        return one is other
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _without_zeros(graph: Graph, zeros: int) -> None:
    """Drop the sums with the first inputs."""
    for zero in [node for node in graph.nodes if node.op == "placeholder"][:zeros]:
        for node in list(zero.users):
            others = [own for own in node.all_input_nodes if own is not zero]
            if (
                node.target is aten.add.Tensor
                and others[0].meta["val"].shape == node.meta["val"].shape
            ):
                node.replace_all_uses_with(others[0])
                graph.erase_node(node)


def _module(graph: Graph) -> GraphModule:
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            setattr(root, str(node.target), node.meta["constant"])
    return GraphModule(root, graph)
