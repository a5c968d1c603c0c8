"""Passes over a traced graph: what is merged, and what only looks equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from flsimulation.training.stacked.compiler.passes import simplify
from flsimulation.training.stacked.compiler.recorder import recorded


def simplified(function: Callable[..., Any], *inputs: Tensor) -> tuple[list[str], tuple[Any, ...]]:
    """The calls that are left, and what they return for the inputs."""
    graph = recorded(function, inputs, {})
    simplify(graph, 0)
    calls = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return calls, GraphModule(nn.Module(), graph)(*inputs)


def test_equal_calls_become_one_and_with_them_the_calls_on_their_results() -> None:
    def squares(x: Tensor) -> tuple[Tensor, ...]:
        return (x * x).sum(), (x * x).sum() + 1.5

    calls, (one, two) = simplified(squares, torch.tensor([1.0, 2.0]))
    assert calls.count("aten.mul.Tensor") == calls.count("aten.sum.default") == 1
    assert (float(one), float(two)) == (5.0, 6.5)


@pytest.mark.parametrize("numbers", [(1, 1.0, True), (True, 1, 1.0), (1.0, True, 1)])
def test_numbers_of_different_types_are_different_arguments(numbers: tuple[Any, ...]) -> None:
    def added(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x + number for number in numbers)

    x = torch.tensor([3, 5])
    _, found = simplified(added, x)
    assert [value.dtype for value in found] == [(x + number).dtype for number in numbers]


def test_zero_and_minus_zero_are_different_arguments() -> None:
    def reciprocals(x: Tensor) -> tuple[Tensor, ...]:
        return 1 / (x * 0.0), 1 / (x * -0.0)

    _, (plus, minus) = simplified(reciprocals, torch.tensor([2.0]))
    assert (float(plus), float(minus)) == (float("inf"), float("-inf"))


def test_not_a_number_equals_itself_as_an_argument() -> None:
    def filled(x: Tensor) -> tuple[Tensor, ...]:
        return x + float("nan"), (x + float("nan")).sum()

    calls, _ = simplified(filled, torch.tensor([2.0]))
    assert calls.count("aten.add.Tensor") == 1
