"""Random numbers of a traced graph as its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from flsimulation.training.stacked.compiler.draws import is_draw

aten = torch.ops.aten


def draws_as_inputs(graph: Graph, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Let every call that draws random numbers be an input, in the order of the calls.

    Parameters
    ----------
    graph : Graph
        Its new inputs come after all others.
    shapes : sequence of tuple of int
        Of the new inputs.

    Returns
    -------
    bool
        False, and nothing is changed, if other calls draw, or others numbers.
    """
    calls = [
        node
        for node in graph.nodes
        if node.op == "call_function" and is_draw(node.target, node.args, node.kwargs)
    ]
    drawn = [_drawn(call) for call in calls]
    if [value.numel() for value in drawn] != [math.prod(shape) for shape in shapes]:
        return False
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for number, (call, value, shape) in enumerate(zip(calls, drawn, shapes, strict=True)):
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw{number}")
        last.meta["val"] = value.new_empty(shape)
        with graph.inserting_before(call):
            own = graph.call_function(aten.view.default, (last, list(value.shape)))
        own.meta["val"] = value.contiguous()
        if call.target is aten.native_dropout.default:
            _drop(graph, call, own)
        else:
            call.replace_all_uses_with(own)
        graph.erase_node(call)
    return True


def _drawn(call: Node) -> torch.Tensor:
    """What a call draws: its result, or the mask beside it."""
    value: Any = call.meta["val"]
    mask: torch.Tensor = value[1] if isinstance(value, tuple) else value
    return mask


def _drop(graph: Graph, call: Node, mask: Node) -> None:
    """Let a dropout that draws its mask itself, as on a GPU, take one."""
    given, probability = call.args[0], float(call.args[1])  # type: ignore[arg-type]
    with graph.inserting_before(call):
        kept = graph.call_function(aten.mul.Tensor, (given, mask))
        scale = 1 / (1 - probability) if probability < 1 else 0.0
        result = graph.call_function(aten.mul.Scalar, (kept, scale))
    kept.meta["val"] = result.meta["val"] = call.meta["val"][0]
    for part in list(call.users):
        part.replace_all_uses_with(mask if part.args[1] == 1 else result)
        graph.erase_node(part)
