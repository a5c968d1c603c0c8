"""Inputs or labels of a data set: one tensor, or several by name, of the same examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Leaves: TypeAlias = Tensor | dict[str, Tensor]
"""Inputs or labels: one tensor [n, ...], or several by name with the same n."""


def leaves(value: Leaves) -> list[Tensor]:
    """The tensors, in an order that does not depend on the dict's."""
    return [tensor for _, tensor in named(value)]


def named(value: Leaves) -> list[tuple[str, Tensor]]:
    """The tensors with their names, in the order of `leaves`; the name of the only one is empty."""
    if isinstance(value, Tensor):
        return [("", value)]
    return [(name, value[name]) for name in sorted(value)]


def first(value: Leaves) -> Tensor:
    """One of the tensors, for what all of them have in common."""
    return value if isinstance(value, Tensor) else next(iter(value.values()))


def each(function: Callable[[Tensor], Tensor], value: Leaves) -> Leaves:
    """The function's result for each tensor, under the same names."""
    if isinstance(value, Tensor):
        return function(value)
    return {name: function(tensor) for name, tensor in value.items()}


def one(value: Leaves, place: Any) -> Leaves:
    """What stands at this place of each tensor."""
    return each(lambda tensor: tensor[place], value)


def stacked(values: Sequence[Leaves]) -> Leaves:
    """Several values of one shape and with the same names as one, [values, ...].

    Raises
    ------
    RuntimeError, KeyError
        If they are not alike.
    """
    if isinstance(values[0], Tensor):
        return torch.stack([first(own) for own in values])
    return {name: torch.stack([dict(named(own))[name] for own in values]) for name in values[0]}


def refilled(like: Leaves, tensors: list[Tensor]) -> Leaves:
    """Other tensors, in the order of `leaves`, under the names of ``like``."""
    if isinstance(like, Tensor):
        return tensors[0]
    found = dict(zip(sorted(like), tensors, strict=True))
    return {name: found[name] for name in like}


def examples(value: Leaves) -> int:
    """Number of examples, n."""
    return len(first(value))


def nbytes(value: Leaves) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in leaves(value))


def shapes(value: Leaves) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of an example in each tensor; the name of the only one is empty."""
    return tuple((name, tuple(tensor.shape[1:])) for name, tensor in named(value))


def kinds(value: Leaves) -> str:
    """The shape and the type of an example, in words."""
    return ", ".join(
        f"{name} {tuple(tensor.shape[1:])} {str(tensor.dtype).removeprefix('torch.')}".strip()
        for name, tensor in named(value)
    )


def described(value: Leaves) -> str:
    """The shape of an example, in words."""
    return ", ".join(f"{name} {shape}" if name else f"{shape}" for name, shape in shapes(value))
