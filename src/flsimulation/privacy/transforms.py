"""Bounds the norm of clients' updates, and adds noise to them.

An update is what training changed: a client's trained parameters less those of the global model. Buffers,
frozen weights and whatever else a model's state has are no part of it: they stay as in the global model.

Source: McMahan et al., "Learning Differentially Private Recurrent Language Models" (ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from flsimulation.privacy.draws import Draws

Tensors: TypeAlias = Mapping[str, Tensor]
"""Tensors of a model by name."""
Noise: TypeAlias = Callable[[], Draws]
"""Returns the generator of one client's noise."""


def updated(module: nn.Module) -> dict[str, str]:
    """Names of a model's state that are parts of an update: trained parameters of real numbers.

    Returns
    -------
    dict
        For each name the one that stands for it: that of the first of tied parameters.
    """
    first: dict[int, str] = {}
    state = module.state_dict().keys()
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter.requires_grad and parameter.is_floating_point() and name in state
    }


def norms(rows: Tensors, origin: Tensors, names: Mapping[str, str]) -> Tensor:
    """L2 norms of the clients' updates; float64 [clients].

    Parameters
    ----------
    rows : mapping of Tensor
        The clients' parameters, [clients, ...].
    origin : mapping of Tensor
        The global model's.
    names : mapping
        As of `updated`; those that are not in ``rows`` were not trained.
    """
    total: Tensor | None = None
    for name in _once(names):
        if (own := rows.get(name)) is None:
            continue
        gap = (own - origin[name]).reshape(len(own), -1)
        square = torch.linalg.vector_norm(gap, dim=1, dtype=gap.dtype).double().square()
        total = square if total is None else total + square
    if total is None:
        raise ValueError("no parameter of the model is trained")
    return total.sqrt()


def shares(norms: Tensor, clip: float) -> Tensor:
    """What is left of each update: min(1, clip / norm), which is 1 for an update of zeros."""
    return (clip / norms.clamp(min=clip)).to(norms.dtype)


def mean_of_clipped(
    rows: Tensors, origin: Tensors, names: Mapping[str, str], kept: Tensor
) -> dict[str, Tensor]:
    """The mean of the clipped models, all of which weigh the same.

    Parameters
    ----------
    rows, origin, names
        As of `norms`.
    kept : Tensor
        What is left of each update, from `shares`; [clients].

    Returns
    -------
    dict
        origin + mean(kept_i (row_i - origin)), for the names of an update only.
    """
    weights, found = kept / len(kept), dict[str, Tensor]()
    for name, first in names.items():
        if (own := rows.get(first)) is not None and name in origin:
            flat, share = own.reshape(len(own), -1), weights.to(own.device, own.dtype)
            mean = origin[first] * (1 - share.sum()) + (share @ flat).view(own.shape[1:])
            found[name] = mean.to(own.dtype)
    return found


def client(
    rows: Tensors,
    origin: Tensors,
    names: Mapping[str, str],
    kept: Tensor,
    noise: float = 0.0,
    generators: Sequence[Noise] = (),
) -> dict[str, Tensor]:
    """The clients' models with their updates clipped, and noise added to each.

    Parameters
    ----------
    rows, origin, names, kept
        As of `mean_of_clipped`.
    noise : float
        Standard deviation of the noise on each number; 0 for none.
    generators : sequence of callables
        One for each client, where there is noise.

    Returns
    -------
    dict
        [clients, ...] for the names of an update only.
    """
    made, found = [one() for one in generators] if noise else [], dict[str, Tensor]()
    for first in _once(names):
        if (own := rows.get(first)) is None:
            continue
        start, like = origin[first], (-1, *[1] * (own.dim() - 1))
        found[first] = start + kept.to(own.device, own.dtype).view(like) * (own - start)
        for row, generator in zip(found[first], made, strict=False):
            drawn = generator.standard_normal(tuple(row.shape))
            row.add_(torch.from_numpy(np.asarray(noise * drawn)).to(row.device, row.dtype))
    return {name: found[first] for name, first in names.items() if first in found}


def server(
    mean: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    deviation: float,
    generator: Draws,
) -> dict[str, np.ndarray]:
    """A mean model with Gaussian noise on each number of its update.

    Parameters
    ----------
    mean : mapping of ndarray
        The mean of the clipped models.
    names : mapping
        As of `updated`.
    deviation : float
        Standard deviation of the noise.
    generator : Draws
        It draws array by array, in the order of ``names``.
    """
    noisy = {
        name: (mean[name] + deviation * generator.standard_normal(mean[name].shape)).astype(
            mean[name].dtype
        )
        for name in _once(names)
    }
    return {**mean, **{name: noisy[first] for name, first in names.items()}}


def _once(names: Mapping[str, str]) -> list[str]:
    """Names of an update without those of which another stands for the same parameter."""
    return [name for name, first in names.items() if name == first]
