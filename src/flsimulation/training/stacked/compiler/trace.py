"""The graph of a step of many clients, and what a step may not do to have one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from flsimulation import seeds
from flsimulation.errors import describe_error, place_of
from flsimulation.training.logged import CannotTake
from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.stacked.compiler import passes as passes
from flsimulation.training.stacked.compiler.convolution import replacements
from flsimulation.training.stacked.compiler.drawing import draws_as_inputs
from flsimulation.training.stacked.compiler.draws import OTHERWISE, Draw
from flsimulation.training.stacked.compiler.facts import NeedsValue
from flsimulation.training.stacked.compiler.inside import NoForm
from flsimulation.training.stacked.compiler.recorder import recorded
from flsimulation.training.stacked.compiler.step import NotStackable, WritesInPlace
from flsimulation.training.stacked.effects import attributes


def traced(
    step: Callable[..., Any],
    module: nn.Module,
    inputs: Sequence[Tensor],
    leaves: int,
    draws: Sequence[Draw] = (),
) -> Graph:
    """The simplified graph of a step's ATen calls.

    Its inputs are those of the step, and after them one for each of its draws.

    Parameters
    ----------
    step : callable
        Of the inputs; returns losses, logged values and a gradient for each of the leaves.
    module : Module
        The one that the step calls.
    inputs : sequence of Tensor
        First the leaves, of which gradients are taken.
    leaves : int
        How many there are.
    draws : sequence of Draw
        What one client's step draws.

    Returns
    -------
    Graph
        Without operations in place; a tensor that it holds is its node's ``meta["constant"]``.

    Raises
    ------
    NotStackable
        If the step cannot be traced, draws in another way than one client's, or changes its module.
    """
    instead = replacements(inputs[0].device)
    tensors = [*(t.requires_grad_() for t in inputs[:leaves]), *inputs[leaves:]]
    with seeds.global_streams(0):
        before = attributes(module)
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                found = recorded(step, tensors, instead)
                if passes.writes_in_place(found):
                    found = _without_writes(found, tensors, instead)
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            raise refusal(error) from error
    if not draws_as_inputs(found, [(len(inputs[0]), *d.shape) for d in draws]):
        raise NotStackable(f"training_step {OTHERWISE}")
    if passes.writes_in_place(found) or attributes(module) != before:
        raise NotStackable("training_step changes the module itself")
    passes.simplify(found, leaves)
    return found


def _without_writes(
    found: Graph, tensors: Sequence[Tensor], instead: Mapping[Any, Callable[..., Any]]
) -> Graph:
    """The graph without operations in place.

    Tensors that it holds are inputs meanwhile: of others `functionalize` lets writes be.
    """
    held = [node for node in found.nodes if node.op == "get_attr"]
    values = [node.meta["constant"] for node in held]
    last = [node for node in found.nodes if node.op == "placeholder"][-1]
    for node in reversed(held):
        with found.inserting_after(last):
            node.replace_all_uses_with(found.placeholder(str(node.target)))
        found.erase_node(node)
    pure = torch.func.functionalize(GraphModule(nn.Module(), found), remove="mutations")
    result = recorded(pure, [*(t.detach() for t in tensors), *values], instead)
    given = [node for node in result.nodes if node.op == "placeholder"]
    for node, value in zip(given[len(tensors) :], values, strict=True):
        _hold(result, node, value)
    return result


def _hold(graph: Graph, given: Node, value: Tensor) -> None:
    """Let the graph hold a tensor that was an input."""
    with graph.inserting_before(given):
        held = graph.create_node("get_attr", given.name)
    held.meta.update(given.meta, constant=value)
    given.replace_all_uses_with(held)
    graph.erase_node(given)


def refusal(error: BaseException) -> NotStackable:
    """Why a step that failed so cannot be a program."""
    if isinstance(error, WritesInPlace):
        return error
    text = str(error)
    if isinstance(error, NotStackable | CannotTake):
        return NotStackable(f"training_step {text}{place_of(error)}")
    if isinstance(error, NeedsValue):
        return NotStackable(f"training_step {text}{place_of(error)}")
    described, place = describe_error(error), place_of(error)
    if isinstance(error, NoForm):
        return NotStackable(f"{text} cannot be trained for many clients at once{place}")
    if _IN_PLACE.search(text):
        return WritesInPlace(f"training_step writes in place into a tensor that it made{place}")
    if _ASKS.search(text):
        return NotStackable(f"training_step depends on a tensor's value (`if`, `.item()`){place}")
    if found := _NO_FORM.search(text):
        return NotStackable(
            f"PyTorch's vmap cannot take {found[1] or found[2]} of many clients at once{place}"
        )
    return NotStackable(f"training_step cannot be traced ({described})")


_IN_PLACE = re.compile(r"in-?\s?place", re.IGNORECASE)
_ASKS = re.compile(r"data-dependent control flow|calling \.item\(\)")
_NO_FORM = re.compile(
    r"Batching rule not implemented for (?:aten::)?(\w+)|aten::(\w+) hit the vmap fallback"
)
