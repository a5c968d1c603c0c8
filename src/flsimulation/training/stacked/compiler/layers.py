"""Whole layers that ``vmap`` has no form for, written in calls for which it has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flsimulation.training.stacked.compiler.inside import (
    NoForm,
    constant,
    values_of,
)
from flsimulation.training.stacked.compiler.recurrent import states_of


def recurrent(kind: str) -> Callable[..., Any]:
    """`torch.gru` and its like, as `torch.nn.GRU` is documented."""

    def whole(*given: Any) -> Any:
        if len(given) != 9:
            return NotImplemented
        if isinstance(given[3], Sequence):  # data, batch_sizes, hx, weights, ...
            data, sizes, *rest = given
            return _packed(kind, data, sizes, *rest)
        *rest, batch_first = given
        x = rest[0].transpose(0, 1) if batch_first else rest[0]
        found, *last = _layers(kind, x, *rest[1:])
        return found.transpose(0, 1) if batch_first else found, *last

    return whole


def _packed(kind: str, data: Tensor, sizes: Tensor, *rest: Any) -> Any:
    """Sequences of one length, in the form of a `torch.nn.utils.rnn.PackedSequence`."""
    steps, most = len(sizes), data.shape[0] // len(sizes)
    if data.shape[0] != steps * most:
        raise NoForm("packed sequences of several lengths")
    found, *last = _layers(kind, data.reshape(steps, most, -1), *rest)
    return found.flatten(0, 1), *last


def pack(input: Tensor, lengths: Tensor, batch_first: bool) -> Any:
    """As `torch.nn.utils.rnn.pack_padded_sequence`, for sequences of one length."""
    if len(found := set(values_of(lengths))) > 1:
        raise NoForm("packed sequences of several lengths")
    x = input.transpose(0, 1) if batch_first else input
    length = found.pop()
    return x[:length].flatten(0, 1), constant(length, x.shape[1])


def zeros(*sizes: Any, **named: Any) -> Any:
    """As `torch.zeros` is documented, also for a size that is a tensor, as packed sequences have it."""
    if not any(isinstance(size, Tensor) for size in sizes):
        return NotImplemented
    whole = (values_of(size) if isinstance(size, Tensor) else size for size in sizes)
    return torch.zeros(*whole, **named)


def unpack(
    data: Tensor, sizes: Tensor, batch_first: bool, padding: float, total: int = 0
) -> tuple[Tensor, Tensor]:
    """As `torch.nn.utils.rnn.pad_packed_sequence`, of what `pack` packs."""
    x = data.reshape(len(sizes), -1, *data.shape[1:])
    lengths = torch.full((x.shape[1],), len(sizes))
    x = functional.pad(x, [0] * (2 * x.ndim - 1) + [max(0, total - len(sizes))], value=padding)
    return x.transpose(0, 1) if batch_first else x, lengths


def _layers(
    kind: str,
    x: Tensor,
    start: Any,
    weights: Sequence[Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    training: bool,
    both_ways: bool,
) -> tuple[Tensor, ...]:
    """States after the last layer, [time, examples, units], and each layer's last ones."""
    start = [start] if isinstance(start, Tensor) else list(start)
    ways, own = 2 if both_ways else 1, 4 if biased else 2
    if len(weights) != layers * ways * own:
        raise NoForm(f"{kind.upper()} with proj_size")
    ends: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        if layer and dropout > 0 and training:
            x = functional.dropout(x, dropout)
        found = []
        for way in range(ways):
            place = layer * ways + way
            first = [state[place] for state in start]
            states, *last = states_of(
                kind, x.flip(0) if way else x, first, weights[place * own : (place + 1) * own]
            )
            ends.append((states[-1], *last))
            found.append(states.flip(0) if way else states)
        x = torch.cat(found, -1) if both_ways else found[0]
    return x, *(torch.stack(each) for each in zip(*ends, strict=True))


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """As `torch.nn.functional.embedding` is documented; the row of padding has no gradient."""
    wanted = {"max_norm": max_norm is not None, "scale_grad_by_freq": scale_grad_by_freq}
    for name, is_wanted in {**wanted, "sparse": sparse}.items():
        if is_wanted:
            raise NoForm(f"embedding with {name}")
    rows = functional.embedding(input, weight)
    if padding_idx is None:
        return rows
    padding = input == padding_idx % len(weight)
    return torch.where(padding.unsqueeze(-1), rows.detach(), rows)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """As `torch._weight_norm`: the rows of v along a dimension, of the lengths g."""
    others = [other for other in range(v.ndim) if other != dim % v.ndim or dim == -1]
    lengths: Tensor = torch.linalg.vector_norm(v, dim=others, keepdim=True)
    return v * (g / lengths)


def normalize(
    input: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: Tensor | None = None,
) -> Tensor:
    """As `torch.nn.functional.normalize` is documented."""
    result = functional.normalize(input, p, dim, eps)
    return result if out is None else out.copy_(result)


def normal(mean: Any, std: Any = 1.0, *sizes: Any, **named: Any) -> Any:
    """As `torch.normal` is documented, for a tensor of means or of deviations.

    As in PyTorch, it has no gradient.
    """
    like = [value for value in (mean, std) if isinstance(value, Tensor)]
    if not like or sizes or named:
        return NotImplemented
    mean, std = (v.detach() if isinstance(v, Tensor) else v for v in (mean, std))
    shape = (mean + std).shape
    return mean + std * torch.randn(shape, dtype=like[0].dtype, device=like[0].device)


def bernoulli(input: Tensor, *probability: Any, **named: Any) -> Any:
    """As `torch.bernoulli` is documented, for a tensor of probabilities."""
    if probability or named:
        return NotImplemented
    drawn = torch.rand(input.shape, dtype=input.dtype, device=input.device)
    return (drawn < input).to(input.dtype)
