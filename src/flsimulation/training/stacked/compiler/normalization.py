"""Batch and group normalization of many clients at once: one with all clients' features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flsimulation.training.stacked.compiler.images import channels_last, of_many


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """As `torch.nn.functional.batch_norm` is documented, inside ``vmap``.

    PyTorch's own form writes into the running statistics without saying so, which a traced program
    would not repeat, and scales and shifts in steps of their own.
    """
    if not training or not of_many(input):
        return NotImplemented
    places = input.numel() // input.shape[1]
    if places < 2:  # as PyTorch itself checks
        raise ValueError(f"Expected more than 1 value per channel when training, got {input.shape}")
    result, mean, scale = _Folded.apply(input, weight, bias, eps)  # type: ignore[no-untyped-call]
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            count = torch.full((), float(places), dtype=scale.dtype, device=scale.device)
            # a call, so that a program has the number for every size of a batch
            variance = (scale.pow(-2) - eps) * (count / (count - 1))
            running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
            running_var.copy_((1 - momentum) * running_var + momentum * variance)
    return result


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """As `torch.nn.functional.group_norm` is documented, inside ``vmap``.

    PyTorch's own form asks how images lie in memory, which ``vmap`` does not know of images with their
    channels last.
    """
    if not of_many(input):
        return NotImplemented
    return _Grouped.apply(input, weight, bias, num_groups, eps)  # type: ignore[no-untyped-call]


class _Folded(torch.autograd.Function):
    """The normalized input, and each feature's mean and 1 / sqrt(variance + eps).

    Only its form under ``vmap`` is used; PyTorch has the gradient of that.
    """

    @staticmethod
    def forward(x: Tensor, weight: Any, bias: Any, eps: float) -> Any:
        """Without vmap: for one client."""
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def vmap(
        info: Any, dims: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Any:
        """All clients' features are those of one layer, [batch, clients features, ...]."""
        clients = info.batch_size
        x, weight, bias = _folded(clients, dims, x, weight, bias)
        result, mean, scale = torch.native_batch_norm(
            *(x, weight, bias, None, None, True, 0.0, eps)
        )
        statistics = (tensor.view(clients, -1) for tensor in (mean, scale))
        return (_unfolded(result, clients), *statistics), (1, 0, 0)


class _Grouped(torch.autograd.Function):
    """The input, normalized in groups of its channels; only its form under ``vmap`` is used."""

    @staticmethod
    def forward(x: Tensor, weight: Any, bias: Any, groups: int, eps: float) -> Tensor:
        """Without vmap: for one client."""
        return torch.group_norm(x, groups, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def vmap(
        info: Any, dims: Any, x: Tensor, weight: Any, bias: Any, groups: int, eps: float
    ) -> Any:
        """All clients' channels are those of one layer, and so are their groups."""
        clients = info.batch_size
        x, weight, bias = _folded(clients, dims, x, weight, bias)
        return _unfolded(torch.group_norm(x, clients * groups, weight, bias, eps), clients), 1


def _folded(
    clients: int, dims: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Input [batch, clients features, ...], and scale and shift of all clients' features."""
    x = (
        x.unsqueeze(1).expand(-1, clients, *x.shape[1:])
        if dims[0] is None
        else x.movedim(dims[0], 1)
    )
    whole = x.flatten(1, 2)

    def folded(tensor: Tensor | None, dim: int | None) -> Tensor | None:
        if tensor is None:
            return None
        many = tensor.expand(clients, -1) if dim is None else tensor.movedim(dim, 0)
        return many.reshape(-1)

    return (
        channels_last(whole) if whole.ndim == 4 else whole,
        folded(weight, dims[1]),
        folded(bias, dims[2]),
    )


def _unfolded(x: Tensor, clients: int) -> Tensor:
    """[batch, clients, features, ...]"""
    return x.reshape(len(x), clients, -1, *x.shape[2:])
