"""A graph of ATen calls as one TorchScript function, which runs without holding Python's lock."""

from __future__ import annotations

import functools
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

_PLAIN = (bool, int, str, type(None))
_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format)


def compiled(module: GraphModule) -> Callable[..., tuple[torch.Tensor | None, ...]]:
    """The graph as one call, in TorchScript where its calls can be written so.

    Parameters
    ----------
    module : GraphModule
        Its outputs are one tuple of tensors and None.

    Returns
    -------
    callable
        Takes the placeholders' tensors; returns the outputs as a tuple.
    """
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    results: Any = output.args[0]
    present = [index for index, value in enumerate(results) if value is not None]
    constants = [
        getattr(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is no longer developed, it says
            unit = torch.jit.CompilationUnit(_source(module, results, present))
    except (RuntimeError, _CannotWrite):
        return module
    function, missing = unit.step, len(results) - len(present)

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        given: list[torch.Tensor] = function(*tensors, *constants)
        if not missing:
            return tuple(given)
        values: list[torch.Tensor | None] = [None] * len(results)
        for index, value in zip(present, given, strict=True):
            values[index] = value
        return tuple(values)

    return run


@functools.cache
def scripted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function in TorchScript, which runs without holding Python's lock."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is no longer developed, it says
        return torch.jit.script(function)  # type: ignore[no-any-return]


class _CannotWrite(Exception):  # noqa: N818 - no error: the graph runs as it is
    """A call that has no form in TorchScript's language."""


def _source(module: GraphModule, results: Any, present: list[int]) -> str:
    nodes = list(module.graph.nodes)
    inputs = [n for n in nodes if n.op == "placeholder"] + [n for n in nodes if n.op == "get_attr"]
    lines = [f"def step({', '.join(f'{node.name}: Tensor' for node in inputs)}) -> List[Tensor]:"]
    lines += [f"    {node.name} = {_call(node)}" for node in nodes if node.op == "call_function"]
    lines.append(f"    return [{', '.join(results[index].name for index in present)}]")
    return "\n".join([*lines, ""])


def _call(node: Node) -> str:
    if node.target is operator.getitem:
        return f"{_written(node.args[0])}[{node.args[1]}]"
    if not isinstance(node.target, torch._ops.OpOverload):
        raise _CannotWrite
    name = node.target._schema.name.replace("::", ".")
    given = [_written(argument) for argument in node.args]
    given += [f"{key}={_written(value)}" for key, value in node.kwargs.items()]
    return f"torch.ops.{name}({', '.join(given)})"


def _written(value: Any) -> str:
    if isinstance(value, Node):
        return value.name
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if isinstance(value, _OF_TORCH):
        return str(value)
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if isinstance(value, list | tuple):
        return f"[{', '.join(_written(item) for item in value)}]"
    raise _CannotWrite
