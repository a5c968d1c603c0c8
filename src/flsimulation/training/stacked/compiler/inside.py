"""What a step asks of tensors inside of ``vmap`` and of a trace, where these have no answer of their own.

A tensor of many clients inside of ``vmap`` is a wrapper, of which autograd knows nothing: its graph is that of
the tensor inside, which is all clients'. Clients do not depend on each other, so that the gradients
of all clients' sum are each client's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flsimulation.training.stacked.compiler.recorder import recorder, unrecorded

_functorch: Any = torch._C._functorch


class NoForm(Exception):  # noqa: N818 - no error: the module is trained client by client
    """What a call asks for that many clients at once cannot have."""


def is_clients_own(tensor: Tensor) -> bool:
    """Whether it differs between clients."""
    return bool(_functorch.is_batchedtensor(tensor))


def values_of(tensor: Tensor) -> Any:
    """Numbers of a tensor that the step made of constants, also inside of a trace.

    Raises
    ------
    NoForm
        If it follows from what the step is given.
    """
    if is_clients_own(tensor) or not _is_constant(tensor):
        raise NoForm("sizes and lengths in tensors")
    with unrecorded():
        return tensor.tolist()


def constant(count: int, value: int) -> Tensor:
    """So many times a number, as a tensor that a trace may ask for its values."""
    with unrecorded():
        return torch.full((count,), value)


def _number(question: Callable[..., Any]) -> Callable[..., Any]:
    """``bool(tensor)`` and the like, inside of a trace of what the step made of constants, too."""

    def number(tensor: Tensor) -> Any:
        if recorder() is None or is_clients_own(tensor) or not _is_constant(tensor):
            return NotImplemented
        with unrecorded():
            return question(tensor)

    return number


def _is_constant(tensor: Tensor) -> bool:
    """Whether nothing that a step that is traced is given or draws has a part in it."""
    own = recorder()
    return own is None or own.is_constant(tensor)


def requires_grad_(tensor: Tensor, requires_grad: bool = True) -> Any:
    """As `torch.Tensor.requires_grad_`: of the tensor inside."""
    if not is_clients_own(tensor):
        return NotImplemented
    before = _functorch.get_inplace_requires_grad_allowed()
    _functorch.set_inplace_requires_grad_allowed(True)
    try:
        _inside(tensor).requires_grad_(requires_grad)
    finally:
        _functorch.set_inplace_requires_grad_allowed(before)
    return tensor


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,  # noqa: ARG001 - PyTorch ignores it
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> Any:
    """As `torch.autograd.grad`: of the tensors inside, for each client its own."""
    outs, ins, seeds = (_listed(given) for given in (outputs, inputs, grad_outputs))
    if is_grads_batched or not all(is_clients_own(tensor) for tensor in (*outs, *ins)):
        return NotImplemented
    found = torch.autograd.grad(
        [_inside(tensor) for tensor in outs],
        [_inside(tensor) for tensor in ins],
        [
            _inside((torch.ones_like(out) if seed is None else seed).expand_as(out) + 0 * out)
            for out, seed in zip(outs, seeds or [None] * len(outs), strict=True)
        ],
        retain_graph,
        create_graph,
        allow_unused=allow_unused,
        materialize_grads=materialize_grads,
    )
    return tuple(
        None if gradient is None else _outside(gradient, tensor)
        for gradient, tensor in zip(found, ins, strict=True)
    )


def _listed(given: Any) -> list[Any]:
    return [given] if isinstance(given, Tensor) else list(given or ())


def _inside(tensor: Tensor) -> Tensor:
    inside: Tensor = _functorch.get_unwrapped(tensor)
    return inside


def _outside(inside: Tensor, like: Tensor) -> Tensor:
    """A tensor of all clients as the one that it belongs to."""
    place, level = _functorch.maybe_get_bdim(like), _functorch.maybe_get_level(like)
    outside: Tensor = _functorch._add_batch_dim(inside, place, level)
    return outside


_QUESTIONS = (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item)
ASKED: dict[Any, Callable[..., Any]] = {
    **{question: _number(question) for question in _QUESTIONS},
    Tensor.requires_grad_: requires_grad_,
    torch.autograd.grad: gradients,
}
