"""LSTMs of many clients by oneDNN, which PyTorch itself takes for float32 on a CPU, client by client.

It multiplies small matrices faster than batched products do, without a pass over the gates.
What it needs for gradients is 20 MB a client for 80 steps of 32 examples and 128 units. Kept for all clients,
that memory costs more than to compute it again, client by client. docs/decisions/0028 has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flsimulation.training.stacked.compiler.torchscript import scripted


def takes(tensors: Sequence[Tensor]) -> bool:
    """Whether PyTorch takes it for a layer of these tensors, alone."""
    backend: Any = torch.backends.mkldnn
    return (
        backend.is_available()
        and bool(torch._C._get_mkldnn_enabled())
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        and tensors[0].numel() > 0
    )


def lstm(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All states and the last cells.

    Parameters
    ----------
    tensors : sequence of Tensor
        x [clients, time, examples, inputs], first states and cells [clients, examples, units], both weights, and
        both biases or none.
    """
    states = tensors[0].new_empty(*tensors[0].shape[:3], tensors[1].shape[-1])
    last = torch.empty_like(tensors[2])
    scripted(_forward)(*_with_biases(tensors), states, last)
    return [states, last]


def lstm_backward(gradients: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the tensors by those of the states and the last cells."""
    given = _with_biases(tensors)
    found = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in given[:6]]
    with torch.enable_grad():  # without, it keeps nothing for a gradient
        scripted(_backward)(*(g.contiguous() for g in gradients), *given, *found)
    return [*found, found[-1].clone()][: len(tensors)]


def _with_biases(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All of them contiguous, as oneDNN reads them, and with biases."""
    whole = [t.contiguous() for t in tensors]
    return whole if len(whole) > 5 else [*whole, *[whole[3].new_zeros(whole[3].shape[:2])] * 2]


def _forward(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w: Tensor,
    u: Tensor,
    b: Tensor,
    d: Tensor,
    states: Tensor,
    last: Tensor,
) -> None:
    for k in range(x.size(0)):
        begin = h[k : k + 1], c[k : k + 1]
        found, _, cell, _ = torch.ops.aten.mkldnn_rnn_layer(
            x[k],
            w[k],
            u[k],
            b[k],
            d[k],
            begin[0],
            begin[1],
            False,
            [],
            2,
            h.size(2),
            1,
            True,
            False,
            False,
            False,
        )
        states[k].copy_(found)
        last[k].copy_(cell[0])


def _backward(
    of_states: Tensor,
    of_last: Tensor,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w: Tensor,
    u: Tensor,
    b: Tensor,
    d: Tensor,
    of_x: Tensor,
    of_h: Tensor,
    of_c: Tensor,
    of_w: Tensor,
    of_u: Tensor,
    of_b: Tensor,
) -> None:
    for k in range(x.size(0)):
        begin = h[k : k + 1], c[k : k + 1]
        states, end, cell, kept = torch.ops.aten.mkldnn_rnn_layer(
            x[k],
            w[k],
            u[k],
            b[k],
            d[k],
            begin[0],
            begin[1],
            False,
            [],
            2,
            h.size(2),
            1,
            True,
            False,
            False,
            True,
        )
        found = torch.ops.aten.mkldnn_rnn_layer_backward(
            x[k],
            w[k],
            u[k],
            b[k],
            d[k],
            begin[0],
            begin[1],
            states,
            end,
            cell,
            of_states[k],
            None,
            of_last[k : k + 1],
            False,
            2,
            h.size(2),
            1,
            True,
            True,
            False,
            [],
            False,
            kept,
        )
        of_x[k].copy_(found[0])
        of_w[k].copy_(found[1])
        of_u[k].copy_(found[2])
        of_b[k].copy_(found[3])
        of_h[k].copy_(found[5].view_as(of_h[k]))
        of_c[k].copy_(found[6].view_as(of_h[k]))
