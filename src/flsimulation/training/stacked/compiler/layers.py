"""Whole layers that ``vmap`` has no form for, written in calls for which it has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flsimulation.training.stacked.compiler.recurrent import states_of


class NoForm(Exception):  # noqa: N818 - no error: the module is trained client by client
    """What a call asks for that many clients at once cannot have."""


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
    found, *last = _layers(kind, data.unflatten(0, (steps, most)), *rest)
    return found.flatten(0, 1), *last


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
