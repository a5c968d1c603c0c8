"""Graphs of ATen calls: those that PyTorch's own tracer finds, and what may not be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from flsimulation.training.stacked.compiler.recorder import recorded, recorder, unrecorded

aten = torch.ops.aten
OWN = torch.tensor([[3.0, 1.0], [4.0, 1.0]])


def gradients(x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
    def loss(one: Tensor, other: Tensor) -> Tensor:
        return functional.cross_entropy(torch.tanh(one * other) @ OWN, torch.tensor([0, 1]))

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        losses = vmap(loss)(x[None].expand(3, 2, 2), y[None].expand(3, 2, 2))
        return losses, *torch.autograd.grad(losses.sum(), (x,)), None


def parts(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    values, _ = x.sort(dim=1)
    first, second = (x + y).chunk(2)
    return values, first * second, torch.stack([x, y])


def writes(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    own = torch.zeros(2, 2)
    own[0] = x[1]
    return own.add_(y), torch.tensor(2.0).mul_(x.sum())


def calls_of(graph: Graph) -> list[tuple[str, tuple[Any, ...]]]:
    """What is called, and the shapes of what it is called with."""
    return [
        (str(node.target), tuple(given.meta["val"].shape for given in node.all_input_nodes))
        for node in graph.nodes
        if node.op == "call_function"
        and node.target is not aten.detach.default
        and all(isinstance(given.meta.get("val"), Tensor) for given in node.all_input_nodes)
    ]


def filled(graph: Graph) -> GraphModule:
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            root.register_buffer(str(node.target), node.meta["constant"])
    return GraphModule(root, graph)


@pytest.mark.parametrize("function", [gradients, parts, writes])
def test_the_calls_are_those_of_make_fx(function: Callable[..., Any]) -> None:
    graph = recorded(function, [torch.rand(2, 2), torch.rand(2, 2)], {})
    theirs = make_fx(function)(torch.rand(2, 2), torch.rand(2, 2))
    assert calls_of(graph) == calls_of(theirs.graph)
    x, y = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[2.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(filled(graph)(x, y), function(x, y))


def test_a_value_has_form_and_type_without_memory() -> None:
    graph = recorded(lambda x: [x.t().double()], [torch.ones(2, 3)], {})
    value = next(node for node in reversed(graph.nodes) if node.op == "call_function").meta["val"]
    assert (value.shape, value.stride(), value.dtype) == ((3, 2), (1, 3), torch.float64)
    assert value.is_meta


def written_into(x: Tensor) -> Tensor:
    own = torch.zeros(2)
    own[0] = x[0]
    return own.sum()


@pytest.mark.parametrize(
    "asked", [lambda x: x[0], written_into, lambda x: torch.rand(1) + 0 * len(x)]
)
def test_a_value_that_follows_from_inputs_or_draws_cannot_be_asked_for(
    asked: Callable[[Tensor], Tensor],
) -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [x * asked(x).item()]

    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        recorded(function, [torch.ones(2)], {})


def test_a_value_of_constants_can_be_asked_for() -> None:
    def function(x: Tensor) -> Sequence[Tensor]:
        return [x * (OWN[0, 0] + torch.full((2,), 4)[0]).item()]

    graph = recorded(function, [torch.ones(2)], {})
    assert filled(graph)(torch.tensor([1.0, 2.0]))[0].tolist() == [7.0, 14.0]


def test_what_is_not_recorded_is_a_constant() -> None:
    def function(x: Tensor) -> Sequence[Tensor]:
        assert recorder() is not None
        with unrecorded():
            own = torch.arange(2.0) + 1
        return [x * own]

    graph = recorded(function, [torch.ones(2)], {})
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == [
        "aten.mul.Tensor"
    ]
    assert filled(graph)(torch.tensor([2.0, 2.0]))[0].tolist() == [2.0, 4.0]
    assert recorder() is None


def test_a_call_may_be_another_instead() -> None:
    def twice(x: Tensor) -> Any:
        return x + x if x.ndim == 1 else NotImplemented

    graph = recorded(lambda x: [x.sin(), x[None].sin()], [torch.ones(2)], {aten.sin.default: twice})
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert called == ["aten.add.Tensor", "aten.unsqueeze.default", "aten.sin.default"]
