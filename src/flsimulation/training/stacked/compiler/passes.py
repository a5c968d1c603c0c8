"""Passes over the traced graph of a training step: what autograd and vmap leave is made short.

A graph is a list of ATen calls. Its placeholders are first the stacked parameters, its outputs the
losses, the logged values and then a gradient for each of those parameters (or None).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

_SAME = {aten.detach.default, aten.alias.default}
_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}


def simplify(graph: Graph, gradients: int) -> None:
    """Drop operations without effect, repeated ones, and those whose result is not used.

    Parameters
    ----------
    graph : Graph
        Without operations in place; every node has its example value in ``meta["val"]``, without numbers.
    gradients : int
        How many of the last outputs are gradients; those that are the transpose of a batched
        product become the product of the transposed, so that they are contiguous.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and (same := _unchanged(node)) is not None:
            node.replace_all_uses_with(same)
    _merge_equal(graph)
    graph.eliminate_dead_code()
    output = _output(graph)
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    for index in range(len(results) - gradients, len(results)):
        results[index] = _untransposed(graph, results[index])
    output.args = (tuple(results),)
    graph.eliminate_dead_code()


def descend_in_place(graph: Graph, rates: tuple[float, ...]) -> bool:
    """Let the graph take the steps of plain SGD itself, and return no gradients any more.

    A gradient that is a batched product is never written: the product is added to the parameter.

    Parameters
    ----------
    graph : Graph
        Simplified.
    rates : tuple of float
        Learning rate of each parameter.

    Returns
    -------
    bool
        False, and nothing is changed, if an output is a view of a parameter or twice a gradient.
    """
    output = _output(graph)
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    gradients, others = results[-len(rates) :], results[: -len(rates)]
    parameters = [node for node in graph.nodes if node.op == "placeholder"][: len(rates)]
    views = [_views(parameter) for parameter in parameters]
    memory = set[Node]().union(*views)
    given = [gradient for gradient in gradients if gradient is not None]
    if memory & set(results) or len(set(given)) < len(given):
        return False
    readers = [{user for view in found for user in view.users} for found in views]
    for parameter, gradient, rate, read in zip(parameters, gradients, rates, readers, strict=True):
        if gradient is None:
            continue
        product = (
            gradient.target is aten.bmm.default
            and len(gradient.users) == 1
            and not memory & set(gradient.args)  # which may have moved by then
        )
        inputs = tuple(gradient.args) if product else (gradient,)
        places = {node: place for place, node in enumerate(graph.nodes)}
        last = max((*read, *inputs), key=lambda node: places[node])
        with graph.inserting_after(last):
            if product:
                graph.call_function(aten.baddbmm_.default, (parameter, *inputs), {"alpha": -rate})
            else:
                graph.call_function(aten.sub_.Tensor, (parameter, gradient), {"alpha": rate})
    output.args = ((*others, *(None for _ in rates)),)
    graph.eliminate_dead_code(is_impure_node=_has_effect)
    return True


def writes_in_place(graph: Graph) -> bool:
    """Whether a call changes one of its arguments."""
    return any(_is_mutable(node) for node in graph.nodes)


def coarsest(graph: Graph) -> list[float]:
    """Of each output: the largest machine epsilon of all types in which it was rounded.

    A view rounds nothing, nor does a parameter; 0 is for what was not rounded at all.
    """
    found: dict[Node, float] = {}
    for node in graph.nodes:
        rounds = node.op == "call_function" and not _may_alias(node)
        own = epsilon(node.meta.get("val")) if rounds else 0.0
        found[node] = max([own, *(found[given] for given in node.all_input_nodes)])
    results: Any = _output(graph).args[0]
    return [0.0 if result is None else found[result] for result in results]


def written(graph: Graph) -> int:
    """Bytes of all that the graph's calls write."""
    calls = (n for n in graph.nodes if n.op == "call_function" and not _may_alias(n))
    values = (leaf for node in calls for leaf in tree_leaves(node.meta.get("val")))
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def epsilon(value: Any) -> float:
    """The machine epsilon of the coarsest of the tensors in a nested value; 0 without real numbers."""
    values = [v for v in tree_leaves(value) if isinstance(v, torch.Tensor)]
    return max([0.0, *(torch.finfo(v.dtype).eps for v in values if v.is_floating_point())])


def _unchanged(node: Node) -> Node | None:
    """The argument that a call merely hands on."""
    target, given = node.target, node.args
    if not given or not isinstance(given[0], Node):
        return None
    first = given[0]
    if target in _RESHAPES and first.target in _RESHAPES and isinstance(first.args[0], Node):
        node.args = (first.args[0], given[1])  # a view of a view
        first = first.args[0]
    if target in _SAME:
        return first
    if target in _RESHAPES or target is aten.expand.default:
        return first if _value(first).shape == _value(node).shape else None
    if target is aten.permute.default:
        return first if list(given[1]) == list(range(len(given[1]))) else None  # type: ignore[arg-type]
    if target is aten.mul.Scalar:
        return first if given[1] == 1 and _value(first).dtype == _value(node).dtype else None
    if target is aten.clone.default:
        return first if _value(first).stride() == _value(node).stride() else None
    if target is aten._to_copy.default:
        same = _value(first).dtype == _value(node).dtype
        return first if same and node.kwargs.get("device") is None else None
    return None


def _merge_equal(graph: Graph) -> None:
    """Let a call whose like was made before be that one.

    Not PyTorch's own passes for this: ``CSEPass`` takes 1, 1.0 and True for one number, and
    ``fx_graph_cse`` is private (docs/decisions/0012).
    """
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        if (before := seen.setdefault(key, node)) is not node:
            node.replace_all_uses_with(before)


def _untransposed(graph: Graph, result: Any) -> Any:
    if not isinstance(result, Node) or not _swaps_last(result):
        return result
    product = result.args[0]
    if (
        not isinstance(product, Node)
        or product.target is not aten.bmm.default
        or len(product.users) > 1
    ):
        return result
    first, second = product.args
    with graph.inserting_before(product):
        factors = tuple(_swapped(graph, factor) for factor in (second, first))
        turned = graph.call_function(aten.bmm.default, factors)
    turned.meta["val"] = _value(result).contiguous()
    return turned


def _swapped(graph: Graph, node: Any) -> Node:
    if _swaps_last(node):
        turned: Node = node.args[0]
        return turned
    swapped = graph.call_function(aten.transpose.int, (node, 1, 2))
    swapped.meta["val"] = _value(node).transpose(1, 2)
    return swapped


def _swaps_last(node: Any) -> bool:
    return node.target is aten.transpose.int and set(node.args[1:]) in ({1, 2}, {-1, -2})


def _views(node: Node) -> set[Node]:
    """The node and all that may share its memory."""
    found = {node}
    for user in node.users:
        if user.op == "call_function" and _may_alias(user):
            found |= _views(user)
    return found


def _may_alias(node: Node) -> bool:
    if node.target is operator.getitem or node.target in _RESHAPES:
        return True
    schema = _schema(node)
    return schema is None or any(argument.alias_info is not None for argument in schema.arguments)


def _output(graph: Graph) -> Node:
    output: Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return output


def _value(node: Node) -> torch.Tensor:
    value: torch.Tensor = node.meta["val"]
    return value


def _schema(node: Node) -> Any:
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None


def _is_mutable(node: Node) -> bool:
    schema = _schema(node)
    return schema is not None and bool(schema.is_mutable)


def _has_effect(node: Node) -> bool:
    return node.op in ("placeholder", "output") or _is_mutable(node)


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, float):
        return float, value.hex()  # 0.0 and -0.0 are two numbers, and a NaN is itself
    return (type(value), value) if isinstance(value, bool | int) else value
