"""One graph for every size, from the graphs of two sizes.

What differs between the two follows from the numbers of clients and of examples: each differing
number is a constant times powers of both, which two traces with prime sizes distinguish.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from flsimulation.training.stacked.compiler.step import NotStackable

Sizes: TypeAlias = tuple[int, int]
"""Clients and examples."""
_POWERS = (0, 1, -1, 2)
_OTHER = "training_step does something else for other sizes of a batch"


class Sized(NamedTuple):
    """A number in a graph that follows from the clients and the examples of a batch."""

    factor: float
    clients: int
    examples: int
    whole: bool
    """Whether it is an integer: a size."""

    def at(self, clients: int, examples: int) -> int | float:
        """The number for these numbers of clients and examples. Raises `NotStackable`."""
        value = self.factor * float(clients) ** self.clients * float(examples) ** self.examples
        if self.whole and value != round(value):
            raise NotStackable(_OTHER)
        return round(value) if self.whole else value


def template_of(first: Graph, second: Graph, traced: tuple[Sizes, Sizes]) -> list[Any]:
    """The calls of both graphs, with numbers that differ as `Sized`.

    Parameters
    ----------
    first, second : Graph
        Of the same step; a tensor that a graph holds is its node's ``meta["constant"]``.
    traced : pair of (int, int)
        Clients and examples for which each was traced; all prime and different.

    Raises
    ------
    NotStackable
        If the graphs differ in more than sizes.
    """
    ones, others = list(first.nodes), list(second.nodes)
    if len(ones) != len(others):
        raise NotStackable(_OTHER)
    places = ({n: i for i, n in enumerate(ones)}, {n: i for i, n in enumerate(others)})

    def merged(one: Any, other: Any) -> Any:
        if isinstance(one, Node) and isinstance(other, Node):
            if places[0][one] == places[1][other]:
                return _Place(places[0][one])
        elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
            if len(one) == len(other):
                return [merged(a, b) for a, b in zip(one, other, strict=True)]
        elif isinstance(one, float) and isinstance(other, float) and one != one and other != other:
            return one  # a NaN is what it is
        elif isinstance(one, int | float) and type(one) is type(other) and one != other:
            return _sized(one, other, traced)
        elif type(one) is type(other) and one == other:
            return one
        raise NotStackable(_OTHER)

    calls = []
    for one, other in zip(ones, others, strict=True):
        if _kind(one) != _kind(other):
            raise NotStackable(_OTHER)
        constant = one.meta.get("constant")
        if constant is not None and not torch.equal(constant, other.meta["constant"]):
            raise NotStackable(_OTHER)
        names = {key: merged(one.kwargs[key], other.kwargs[key]) for key in one.kwargs}
        calls.append((one.op, one.target, merged(one.args, other.args), names, constant))
    return calls


def _kind(node: Node) -> tuple[str, Any]:
    return node.op, node.target if node.op == "call_function" else None


class _Place(int):
    """A node by its place in the graph."""


def _sized(one: int | float, other: int | float, traced: tuple[Sizes, Sizes]) -> Sized:
    for clients in _POWERS:
        for examples in _POWERS:
            factor = one / Sized(1.0, clients, examples, whole=False).at(*traced[0])
            found = Sized(round(factor, 12), clients, examples, whole=False)
            if math.isclose(found.at(*traced[1]), other, rel_tol=1e-12):
                return found._replace(whole=isinstance(one, int))
    raise NotStackable(_OTHER)


def written(template: list[Any], clients: int, examples: int) -> GraphModule:
    """The graph of a template for these numbers of clients and examples."""
    graph, nodes, root = Graph(), list[Node](), nn.Module()

    def filled(value: Any) -> Any:
        if isinstance(value, _Place):
            return nodes[value]
        if isinstance(value, Sized):
            return value.at(clients, examples)
        if isinstance(value, list):
            return [filled(item) for item in value]
        return value

    for place, (op, target, args, kwargs, constant) in enumerate(template):
        if op == "get_attr":
            root.register_buffer(f"constant{place}", constant)
            nodes.append(graph.get_attr(f"constant{place}"))
        elif op == "placeholder":
            nodes.append(graph.placeholder(f"input{place}"))
        elif op == "output":
            nodes.append(graph.output(tuple(filled(args)[0])))
        else:
            given = {key: filled(value) for key, value in kwargs.items()}
            nodes.append(graph.call_function(target, tuple(filled(args)), given))
    return GraphModule(root, graph)
