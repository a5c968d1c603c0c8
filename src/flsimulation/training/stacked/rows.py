"""Functions of stacked tensors, whose rows are clients: [clients, ...]."""

from __future__ import annotations

import torch
from torch import Tensor

from flsimulation.training.failures import diverged
from flsimulation.training.jobs import State


def mean_of_rows(rows: Tensor, shares: Tensor) -> Tensor:
    """The weighted mean of rows; of equal ones that row, which a sum would round.

    That of integers is rounded to one.
    """
    if len(rows) == 1:
        return rows[0]
    if torch.equal(rows[0], rows[-1]) and bool((rows == rows[0]).all()):
        return rows[0]
    if not rows.is_floating_point():
        mean = shares.to(rows.device, torch.float64) @ rows.double()
        return mean.round().to(rows.dtype)
    return shares.to(rows.device, rows.dtype) @ rows


def diverged_clients(own: State, origin: list[Tensor]) -> dict[int, str]:
    """Clients with a weight that training made NaN or infinite, and its name."""
    found: dict[int, str] = {}
    floating = [value for value in own.values() if value.is_floating_point()]
    if not floating or bool(torch.stack([v.sum().isfinite() for v in floating]).all()):
        return found  # a GPU is waited for once
    for (name, value), before in zip(own.items(), origin, strict=True):
        if not value.is_floating_point() or bool(value.sum().isfinite()):
            continue
        unsound = diverged(value, before).reshape(len(value), -1).any(1)
        for place in unsound.nonzero().flatten().tolist():
            found.setdefault(place, name)
    return found
