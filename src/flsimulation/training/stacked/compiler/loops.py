"""Loops of recurrent layers over time, for many clients at once, forwards and backwards.

Each is a function in TorchScript's language: no Python runs for a step of time, and no autograd. A
step is a few batched products and as few passes over the gates as PyTorch's own functions
allow: what they compute is written where it stays. docs/decisions/0028 has the figures.

Shapes are those of a layer in one direction: C clients, T steps of time, B examples, I inputs, H units, G
gates; gates stand side by side in PyTorch's own order. Inputs are ``x`` [C, T, B, I], states ``h`` and ``c``
[C, B, H], weights ``w`` [C, G H, I] and ``u`` [C, G H, H], biases [C, G H] or none; results are
written into the arguments named for them. Weights are turned over once, because products with rows
that lie one after the other are up to twice as fast for small batches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _preset(out: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None) -> None:
    """Write x weights + bias: [C, B, I] by [C, I, H]."""
    if bias is None:
        torch.bmm(x, weights, out=out)
    else:
        out.copy_(bias.unsqueeze(1))
        out.baddbmm_(x, weights)


def rnn(
    relu: bool, x: Tensor, h: Tensor, w: Tensor, u: Tensor, bias: Tensor | None, states: Tensor
) -> None:
    """All ``states`` [C, T, B, H] of a plain recurrent layer, with tanh or ReLU."""
    w, u = w.transpose(1, 2).contiguous(), u.transpose(1, 2).contiguous()
    for t in range(x.size(1)):
        now = states[:, t]
        _preset(now, x[:, t], w, bias)
        now.baddbmm_(h, u)
        if relu:
            now.relu_()
        else:
            now.tanh_()
        h = now


def rnn_backward(
    relu: bool,
    of_states: Tensor,
    x: Tensor,
    h: Tensor,
    w: Tensor,
    u: Tensor,
    states: Tensor,
    of_x: Tensor | None,
    of_h: Tensor,
    of_w: Tensor,
    of_u: Tensor,
    of_bias: Tensor | None,
) -> None:
    """Gradients of `rnn`, those of the weights added to zeros."""
    last = x.size(1) - 1
    of_h.copy_(of_states[:, last])
    gate = torch.empty_like(h)
    for back in range(last + 1):
        t = last - back
        now, before = states[:, t], states[:, t - 1] if t > 0 else h
        if relu:
            torch.ops.aten.threshold_backward(of_h, now, 0, grad_input=gate)
        else:
            torch.ops.aten.tanh_backward(of_h, now, grad_input=gate)
        _backwards(of_h, of_states, t, gate, u)
        _collect(gate, x[:, t], of_w, of_bias)
        of_u.baddbmm_(gate.transpose(1, 2), before)
        if of_x is not None:
            torch.bmm(gate, w, out=of_x[:, t])


def _backwards(of_h: Tensor, of_states: Tensor, t: int, gates: Tensor, u: Tensor) -> None:
    """Gradient of the state before step t, if the gates only lead to it."""
    if t > 0:
        of_h.copy_(of_states[:, t - 1])
        of_h.baddbmm_(gates, u)
    else:
        torch.bmm(gates, u, out=of_h)


def _collect(gates: Tensor, x: Tensor, of_w: Tensor, of_bias: Tensor | None) -> None:
    of_w.baddbmm_(gates.transpose(1, 2), x)
    if of_bias is not None:
        of_bias.add_(gates.sum(1))


def gru(
    x: Tensor,
    h: Tensor,
    w: Tensor,
    u: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    states: Tensor,
    gates: Tensor,
    inner: Tensor,
) -> None:
    """All ``states`` of a GRU, its ``gates`` [C, T, B, 3 H] and what reset gates let through, ``inner``."""
    size = h.size(2)
    w = w.transpose(1, 2).contiguous()
    two = u[:, : 2 * size].transpose(1, 2).contiguous()
    third = u[:, 2 * size :].transpose(1, 2).contiguous()
    third_bias: Tensor | None = None
    if b is not None and c is not None:
        b = b.clone()
        b[:, : 2 * size].add_(c[:, : 2 * size])
        third_bias = c[:, 2 * size :]
    for t in range(x.size(1)):
        gate, q, now = gates[:, t], inner[:, t], states[:, t]
        reset_update, new = gate.narrow(2, 0, 2 * size), gate.narrow(2, 2 * size, size)
        _preset(gate, x[:, t], w, b)
        _preset(q, h, third, third_bias)
        reset_update.baddbmm_(h, two)
        reset_update.sigmoid_()
        new.addcmul_(gate.narrow(2, 0, size), q)
        new.tanh_()
        torch.lerp(new, h, gate.narrow(2, size, size), out=now)
        h = now


def gru_backward(
    of_states: Tensor,
    x: Tensor,
    h: Tensor,
    w: Tensor,
    u: Tensor,
    states: Tensor,
    gates: Tensor,
    inner: Tensor,
    of_x: Tensor | None,
    of_h: Tensor,
    of_w: Tensor,
    of_u: Tensor,
    of_b: Tensor | None,
    of_c: Tensor | None,
) -> None:
    """Gradients of `gru`, those of the weights added to zeros.

    Gradients of the gates stand in the order new, reset, update, inner: the first three are those of
    ``w``, the last three those of ``u``.
    """
    size, last = h.size(2), x.size(1) - 1
    of_h.copy_(of_states[:, last])
    beside, all = torch.empty_like(of_h), h.new_empty([h.size(0), h.size(1), 4 * size])
    of_new, of_reset = all.narrow(2, 0, size), all.narrow(2, size, size)
    of_update, of_inner = all.narrow(2, 2 * size, size), all.narrow(2, 3 * size, size)
    both, ours, theirs = (
        all.narrow(2, size, 2 * size),
        all.narrow(2, 0, 3 * size),
        all.narrow(2, size, 3 * size),
    )
    w = w.roll(size, 1)
    of_all = h.new_zeros([h.size(0), 4 * size])
    for back in range(last + 1):
        t = last - back
        gate, before = gates[:, t], states[:, t - 1] if t > 0 else h
        reset, update = gate.narrow(2, 0, size), gate.narrow(2, size, size)
        new = gate.narrow(2, 2 * size, size)
        torch.sub(before, new, out=of_update)
        of_update.mul_(of_h)
        torch.addcmul(of_h, of_h, update, value=-1, out=beside)
        torch.ops.aten.tanh_backward(beside, new, grad_input=of_new)
        torch.mul(of_new, inner[:, t], out=of_reset)
        torch.ops.aten.sigmoid_backward(both, gate.narrow(2, 0, 2 * size), grad_input=both)
        torch.mul(of_new, reset, out=of_inner)
        if t > 0:
            torch.addcmul(of_states[:, t - 1], of_h, update, out=of_h)
        else:
            of_h.mul_(update)
        of_h.baddbmm_(theirs, u)
        of_u.baddbmm_(theirs.transpose(1, 2), before)
        of_w.baddbmm_(ours.transpose(1, 2), x[:, t])
        if of_b is not None:
            of_all.add_(all.sum(1))
        if of_x is not None:
            torch.bmm(ours, w, out=of_x[:, t])
    of_w.copy_(of_w.roll(-size, 1))
    if of_b is not None and of_c is not None:
        of_b.copy_(of_all.narrow(1, 0, 3 * size).roll(-size, 1))
        of_c.copy_(of_all.narrow(1, size, 3 * size))


def lstm(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w: Tensor,
    u: Tensor,
    bias: Tensor | None,
    states: Tensor,
    cells: Tensor,
    gates: Tensor,
    tanhs: Tensor,
) -> None:
    """All ``states`` and ``cells`` of an LSTM, its ``gates`` [C, T, B, 4 H] and the cells' ``tanhs``."""
    size = h.size(2)
    w, u = w.transpose(1, 2).contiguous(), u.transpose(1, 2).contiguous()
    for t in range(x.size(1)):
        gate, cell = gates[:, t], cells[:, t]
        _preset(gate, x[:, t], w, bias)
        gate.baddbmm_(h, u)
        gate.narrow(2, 0, 2 * size).sigmoid_()
        new = gate.narrow(2, 2 * size, size).tanh_()
        out = gate.narrow(2, 3 * size, size).sigmoid_()
        torch.mul(gate.narrow(2, size, size), c, out=cell)
        cell.addcmul_(gate.narrow(2, 0, size), new)
        torch.tanh(cell, out=tanhs[:, t])
        h, c = states[:, t], cell
        torch.mul(out, tanhs[:, t], out=h)


def lstm_backward(
    of_states: Tensor,
    of_last: Tensor,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w: Tensor,
    u: Tensor,
    states: Tensor,
    cells: Tensor,
    gates: Tensor,
    tanhs: Tensor,
    of_x: Tensor | None,
    of_h: Tensor,
    of_c: Tensor,
    of_w: Tensor,
    of_u: Tensor,
    of_bias: Tensor | None,
) -> None:
    """Gradients of `lstm` by its states and its last cells, those of the weights added to zeros."""
    size, last = h.size(2), x.size(1) - 1
    of_h.copy_(of_states[:, last])
    of_c.copy_(of_last)
    beside, all = torch.empty_like(h), torch.empty_like(gates[:, 0])
    of_into, of_forget = all.narrow(2, 0, size), all.narrow(2, size, size)
    of_new, of_out = all.narrow(2, 2 * size, size), all.narrow(2, 3 * size, size)
    both = all.narrow(2, 0, 2 * size)
    for back in range(last + 1):
        t = last - back
        gate, tanh = gates[:, t], tanhs[:, t]
        before, cell = (states[:, t - 1], cells[:, t - 1]) if t > 0 else (h, c)
        into, forget = gate.narrow(2, 0, size), gate.narrow(2, size, size)
        new, out = gate.narrow(2, 2 * size, size), gate.narrow(2, 3 * size, size)
        torch.mul(of_h, tanh, out=of_out)
        torch.mul(of_h, out, out=beside)
        of_c.add_(torch.ops.aten.tanh_backward(beside, tanh, grad_input=beside))
        torch.mul(of_c, new, out=of_into)
        torch.mul(of_c, cell, out=of_forget)
        torch.mul(of_c, into, out=of_new)
        torch.ops.aten.sigmoid_backward(both, gate.narrow(2, 0, 2 * size), grad_input=both)
        torch.ops.aten.tanh_backward(of_new, new, grad_input=of_new)
        torch.ops.aten.sigmoid_backward(of_out, out, grad_input=of_out)
        of_c.mul_(forget)
        _backwards(of_h, of_states, t, all, u)
        _collect(all, x[:, t], of_w, of_bias)
        of_u.baddbmm_(all.transpose(1, 2), before)
        if of_x is not None:
            torch.bmm(all, w, out=of_x[:, t])
