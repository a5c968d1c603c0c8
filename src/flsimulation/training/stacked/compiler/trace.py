"""The graph of a step of many clients, and what a step may not do to have one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

from flsimulation import seeds
from flsimulation.errors import describe_error
from flsimulation.training.logged import CannotTake
from flsimulation.training.stacked.compiler import passes as passes
from flsimulation.training.stacked.compiler.convolution import replacements
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.effects import attributes, random_states


def traced(
    step: Callable[..., Any], module: nn.Module, inputs: Sequence[Tensor], leaves: int
) -> Graph:
    """The simplified graph of a step's ATen calls.

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

    Returns
    -------
    Graph
        Without operations in place; a tensor that it holds is its node's ``meta["constant"]``.

    Raises
    ------
    NotStackable
        If the step cannot be traced, draws random numbers or changes its module.
    """
    instead = replacements(inputs[0].device)
    tensors = [*(t.requires_grad_() for t in inputs[:leaves]), *inputs[leaves:]]
    with seeds.global_streams(0):
        before, streams = attributes(module), random_states()
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                found = make_fx(step, instead)(*tensors)
                if passes.writes_in_place(found.graph):
                    pure = torch.func.functionalize(found, remove="mutations")
                    found = make_fx(pure, instead)(*(t.detach() for t in tensors))
        except (Exception, SystemExit) as error:
            raise NotStackable(explained(error)) from error
        drawn = random_states() != streams
    if drawn or passes.draws_random_numbers(found.graph):
        raise NotStackable("training_step draws random numbers")
    if passes.writes_in_place(found.graph) or attributes(module) != before:
        raise NotStackable("training_step changes the module itself")
    passes.simplify(found.graph, leaves)
    for node in found.graph.nodes:
        if node.op == "get_attr":
            node.meta["constant"] = getattr(found, str(node.target))
    return found.graph


def explained(error: BaseException) -> str:
    """Why a step that failed so cannot be a program."""
    text = str(error)
    if isinstance(error, NotStackable | CannotTake):
        return f"training_step {text}"
    if "random operation" in text or "randomness" in text:
        return "training_step draws random numbers"
    if any(words in text for words in ("in-place", "inplace", "in place")):
        return "training_step changes buffers of the module"
    return f"training_step cannot be traced ({describe_error(error)})"
