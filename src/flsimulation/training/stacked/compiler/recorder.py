"""The ATen calls of a function, written down while it runs on real tensors.

As ``make_fx`` of PyTorch does with real tensors, without what it imports and does for fake and symbolic
ones: a second and a half at the start of a run (docs/decisions/0031).
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten

_at_work: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def recorder() -> Recorder | None:
    """The one that records the calls of this thread."""
    return _at_work.get()


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Record no calls of the block: what they return is constant."""
    own = _at_work.get()
    before = own is not None and own.pauses
    if own is not None:
        own.pauses = True
    try:
        yield
    finally:
        if own is not None:
            own.pauses = before


def recorded(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    instead: Mapping[Any, Callable[..., Any]],
) -> Graph:
    """The graph of a function's ATen calls for these inputs.

    Parameters
    ----------
    function : callable
        Of the inputs; returns a sequence of tensors and None.
    inputs : sequence of Tensor
        The graph's inputs. Any other tensor that is not made by a call is a constant.
    instead : mapping
        What to call in place of ATen's calls; it may return NotImplemented.

    Returns
    -------
    Graph
        Every node has its example value in ``meta["val"]``, without numbers; a constant is its node's
        ``meta["constant"]``.

    Raises
    ------
    RuntimeError
        If the function asks for the value of a tensor that is not constant.
    """
    own = Recorder(inputs, instead)
    token = _at_work.set(own)
    try:
        with own, _without_autocast_cache():
            results = function(*inputs)
    finally:
        _at_work.reset(token)
    own.finish(results)
    return own.graph


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes the calls that are made into a graph; see `recorded`."""

    def __init__(self, inputs: Sequence[Tensor], instead: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.pauses = False
        self._inputs, self._instead = inputs, instead
        self._nodes: dict[int, tuple[Node, Tensor]] = {}  # with the tensor, so that its id stays
        self._calls: list[tuple[Any, list[Tensor], list[Tensor]]] = []
        for place, tensor in enumerate(inputs):
            self._nodes[id(tensor)] = (self.graph.placeholder(f"input{place}"), tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Make a call and write it down."""
        named = kwargs or {}
        if self.pauses:
            return func(*args, **named)
        tensors = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)]
        if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
            return NotImplemented
        if func in self._instead:
            with self:
                result = self._instead[func](*args, **named)
            if result is not NotImplemented:
                return result
        if torch.Tag.data_dependent_output in func.tags:
            return self._value(func, tensors, args, named)
        node_args, node_kwargs = tree_map_only(Tensor, self._node, (args, named))
        if func is aten.lift_fresh.default:  # a program must not write into its constants
            func = aten.lift_fresh_copy.default
        result = func(*args, **named)
        node = self.graph.call_function(func, node_args, node_kwargs)
        self._calls.append((func, tensors, self._made(node, result)))
        return result

    def is_constant(self, *tensors: Tensor) -> bool:
        """Whether nothing that the function is given or draws has a part in these tensors."""
        given = {_memory(tensor) for tensor in self._inputs}
        for func, args, results in self._calls:
            drawn = torch.Tag.nondeterministic_seeded in func.tags
            if drawn or any(_memory(tensor) in given for tensor in args):
                given |= {_memory(tensor) for tensor in results}
                given |= {_memory(tensor) for tensor in args if func._schema.is_mutable}
        return not any(_memory(tensor) in given for tensor in tensors)

    def finish(self, results: Sequence[Tensor | None]) -> None:
        """End the graph with the function's results, and note the form of all values."""
        self.graph.output(tuple(None if r is None else self._node(r) for r in results))
        for node in self.graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = tree_map_only(Tensor, _form, node.meta["val"])
        for node, tensor in self._nodes.values():
            node.meta.setdefault("val", _form(tensor))

    def _value(
        self, func: Any, tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self.is_constant(*tensors):
            raise RuntimeError(f"data-dependent control flow: {func}")
        return func(*args, **kwargs)

    def _node(self, tensor: Tensor) -> Node:
        """Of a tensor; one that no call made is a constant."""
        if (known := self._nodes.get(id(tensor))) is not None:
            return known[0]
        node = self.graph.create_node("get_attr", f"constant{len(self._nodes)}")
        node.meta["constant"] = tensor
        self._nodes[id(tensor)] = (node, tensor)
        return node

    def _made(self, node: Node, result: Any) -> list[Tensor]:
        """Note the tensors that a call returned."""
        node.meta["val"] = result
        if isinstance(result, Tensor):
            self._nodes[id(result)] = (node, result)
            return [result]
        parts = list(result) if isinstance(result, list | tuple) else []
        made: list[Tensor] = []
        for place, part in enumerate(parts):
            if part is not None:
                own = self.graph.call_function(operator.getitem, (node, place))
                made += self._made(own, part)
        return made


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _form(tensor: Tensor) -> Tensor:
    """A tensor without numbers: shape, strides and type."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@contextlib.contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Autocast keeps what it converts once: its calls would be missing."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
