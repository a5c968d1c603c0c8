"""Recurrent layers of many clients as two calls, forwards and backwards, for a graph of ATen calls.

`states_of` is a layer in one direction inside ``vmap``. It is one operator forwards and one backwards, whose
loops over time are those of `loops`, so that a trace has two calls for it and not some thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flsimulation.training.stacked.compiler import loops, onednn
from flsimulation.training.stacked.compiler.inside import NoForm
from flsimulation.training.stacked.compiler.torchscript import scripted

_NEAR = 3 * 2**19
"""Bytes of weights that are read in turns, step by step: what a core's second cache holds."""
_KEPT = {"tanh": (1,), "relu": (1,), "gru": (1, 3, 1), "lstm": (1, 1, 4, 1)}
"""By kind: widths of what a loop writes for each step of time, in units; the states are the first."""
_BEFORE_BIASES = {"tanh": 4, "relu": 4, "gru": 4, "lstm": 5}
"""By kind: inputs, first states and weights."""
_FLAGS = {"tanh": (False,), "relu": (True,), "gru": (), "lstm": ()}


def states_of(
    kind: str, x: Tensor, start: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """One client's states of a recurrent layer in one direction, inside or outside of ``vmap``.

    Parameters
    ----------
    kind : str
        ``tanh``, ``relu``, ``gru`` or ``lstm``.
    x : Tensor
        [time, examples, inputs].
    start : sequence of Tensor
        The first state, [examples, units], and an LSTM's first cells.
    weights : sequence of Tensor
        As `torch.nn.GRU` and its like have them: of the inputs, of the states, and both biases or none.

    Returns
    -------
    tuple of Tensor
        All states, [time, examples, units], and an LSTM's last cells, [examples, units].
    """
    alone = [tensor.unsqueeze(0) for tensor in (x, *start, *weights)]
    found: Any = _Layer.apply(kind, *alone)  # type: ignore[no-untyped-call]
    return tuple(value.squeeze(0) for value in found[: len(start)])


class _Layer(torch.autograd.Function):
    """A layer of stacked clients: [clients, time, examples, inputs] and so on."""

    @staticmethod
    def forward(kind: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Results, then what the gradients are made of."""
        return tuple(_forward(kind, list(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the gradients are made of."""
        ctx.kind, *tensors = inputs
        ctx.given, results = len(tensors), 2 if ctx.kind == "lstm" else 1
        ctx.mark_non_differentiable(*output[results:])
        ctx.save_for_backward(*tensors, output[0], *output[results:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Gradients of the tensors."""
        tensors, saved = ctx.saved_tensors[: ctx.given], ctx.saved_tensors[ctx.given :]
        results = 2 if ctx.kind == "lstm" else 1
        found = _backward(
            ctx.kind,
            ctx.needs_input_grad[1],
            list(gradients[:results]),
            list(tensors),
            list(saved),
        )
        return None, found[0] if ctx.needs_input_grad[1] else None, *found[1:]

    @staticmethod
    def vmap(info: Any, in_dims: Any, kind: str, *tensors: Tensor) -> Any:
        """Each client's layer is one of a stack of one; the stacks become one."""
        whole = [
            tensor.expand(info.batch_size, *tensor.shape[1:])
            if dim is None
            else tensor.movedim(dim, 0).squeeze(1)
            for tensor, dim in zip(tensors, in_dims[1:], strict=True)
        ]
        found: Any = _Layer.apply(kind, *whole)  # type: ignore[no-untyped-call]
        return tuple(value.unsqueeze(1) for value in found), (0,) * len(found)


@torch.library.custom_op("flsimulation::recurrent", mutates_args=())
def _forward(kind: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Results of a layer, then what its gradients are made of."""
    if kind == "lstm" and onednn.takes(tensors):
        return onednn.lstm(tensors)
    x, units = tensors[0], tensors[1].shape[-1]
    made = [x.new_empty(*x.shape[:3], width * units) for width in _KEPT[kind]]
    biases = _biases(kind, tensors[_BEFORE_BIASES[kind] :])
    for own in _parts(tensors):
        given = [*tensors[: _BEFORE_BIASES[kind]], *biases, *made]
        scripted(_LOOPS[kind][0])(*_FLAGS[kind], *_of(own, given))
    return [made[0], made[1][:, -1].clone(), *made[1:]] if kind == "lstm" else made


@torch.library.custom_op("flsimulation::recurrent_backward", mutates_args=())
def _backward(
    kind: str,
    needs_x: bool,
    gradients: Sequence[Tensor],
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of a layer's tensors; an empty tensor for those of ``x`` that nobody needs."""
    if kind == "lstm" and len(kept) == 1:
        return onednn.lstm_backward(gradients, tensors)
    count = _BEFORE_BIASES[kind]
    shapes = [t.shape if t.ndim < 4 or needs_x else (0,) for t in tensors]
    found = [t.new_zeros(shape) for t, shape in zip(tensors, shapes, strict=True)]
    biases = [*found[count:], None, None][: 2 if kind == "gru" else 1]
    for own in _parts(tensors):
        given = [*gradients, *tensors[:count], *kept]
        made = [found[0] if needs_x else None, *found[1:count], *biases]
        scripted(_LOOPS[kind][1])(*_FLAGS[kind], *_of(own, [*given, *made]))
    if kind != "gru" and len(tensors) > count:  # both biases have one gradient
        found[-1].copy_(found[-2])
    return found


def _no_second(*_: Any) -> Any:
    raise NoForm("the gradient of a recurrent layer's gradient")


_backward.register_autograd(_no_second)

_LOOPS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "tanh": (loops.rnn, loops.rnn_backward),
    "relu": (loops.rnn, loops.rnn_backward),
    "gru": (loops.gru, loops.gru_backward),
    "lstm": (loops.lstm, loops.lstm_backward),
}


def _biases(kind: str, biases: Sequence[Tensor]) -> list[Tensor | None]:
    """As the loops take them: one for each sum to which they are added."""
    if kind == "gru":
        return list(biases) or [None, None]
    return [biases[0] + biases[1]] if biases else [None]


def _parts(tensors: Sequence[Tensor]) -> list[slice]:
    """Clients that go through time together: as many as have their weights near."""
    clients, (w, u) = len(tensors[0]), [t for t in tensors if t.ndim == 3][-2:]
    most = max(1, _NEAR // max(1, w[0].nbytes + u[0].nbytes))
    return [slice(at, at + most) for at in range(0, clients, most)]


def _of(own: slice, arguments: Sequence[Any]) -> list[Any]:
    return [value[own] if isinstance(value, Tensor) else value for value in arguments]
