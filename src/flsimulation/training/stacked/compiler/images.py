"""Convolutions and pools of many clients at once: one with all clients' channels.

On a CPU images are kept with their channels last, in which form PyTorch's pools and normalizations are
several times as fast. docs/decisions/0030 has the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def channels_last(x: Tensor) -> Tensor:
    """A batch of images [batch, channels, height, width] in the form that is fast where it is.

    Not a batch of one: its first stride may be any, by which PyTorch's gradients mistake the form.
    """
    if x.device.type != "cpu" or len(x) == 1:
        return x.contiguous()
    return x.contiguous(memory_format=torch.channels_last)


def of_many(*tensors: Tensor) -> bool:
    """Whether one of the tensors differs between the clients of a ``vmap``."""
    functorch: Any = torch._C._functorch
    return any(functorch.is_batchedtensor(tensor) for tensor in tensors)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """As `torch.nn.functional.conv2d` is documented, inside ``vmap``."""
    if input.ndim != 4 or isinstance(padding, str) or not of_many(input, weight):
        return NotImplemented
    return _Convolution.apply(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-untyped-call]


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """As `torch.nn.functional.max_pool2d` is documented, inside ``vmap``."""
    if return_indices or input.ndim != 4 or not of_many(input):
        return NotImplemented
    how = kernel_size, stride or kernel_size, padding, dilation, ceil_mode
    return _Pool.apply(input, lambda x: torch.max_pool2d(x, *how))  # type: ignore[no-untyped-call]


def pool(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Another pool of images, which takes each channel by itself."""

    def pooled(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if input.ndim != 4 or not of_many(input):
            return NotImplemented
        return _Pool.apply(input, lambda x: function(x, *args, **kwargs))  # type: ignore[no-untyped-call]

    return pooled


WRITTEN: dict[Any, Callable[..., Any]] = {
    torch.conv2d: conv2d,
    functional.max_pool2d: max_pool2d,
    functional.avg_pool2d: pool(functional.avg_pool2d),
    functional.adaptive_avg_pool2d: pool(functional.adaptive_avg_pool2d),
}
"""What stands for these functions inside ``vmap``."""


class _Convolution(torch.autograd.Function):
    """Only its form under ``vmap`` is used; PyTorch has the gradient of that."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Any, *how: Any) -> Any:
        """Without vmap: for one client."""
        return torch.conv2d(x, weight, bias, *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Any, *how: Any) -> Any:
        """A group for each client and each of its groups; one batch where all have one weight."""
        clients, (stride, padding, dilation, groups) = info.batch_size, how
        if dims[1] is None and dims[2] is None:
            x = x.movedim(dims[0], 0)
            result = torch.conv2d(channels_last(x.flatten(0, 1)), weight, bias, *how)
            return result.reshape(*x.shape[:2], *result.shape[1:]), 0
        weight = _stacked(weight, dims[1], clients).flatten(0, 1)
        if bias is not None:
            bias = _stacked(bias, dims[2], clients).flatten()
        x = channels_last(_folded(x, dims[0], clients))
        result = torch.conv2d(x, weight, bias, stride, padding, dilation, clients * groups)
        return _unfolded(result, clients), 1


class _Pool(torch.autograd.Function):
    """A pool of each channel; only its form under ``vmap`` is used."""

    @staticmethod
    def forward(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Without vmap: for one client."""
        return function(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Any:
        """All clients' channels are those of one image."""
        images = channels_last(_folded(x, dims[0], info.batch_size))
        return _unfolded(function(images), info.batch_size), 1


def _stacked(tensor: Tensor, dim: int | None, clients: int) -> Tensor:
    return tensor.expand(clients, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _folded(x: Tensor, dim: int | None, clients: int) -> Tensor:
    """[batch, clients channels, height, width]"""
    return (
        x.unsqueeze(1).expand(-1, clients, -1, -1, -1) if dim is None else x.movedim(dim, 1)
    ).flatten(1, 2)


def _unfolded(x: Tensor, clients: int) -> Tensor:
    """[batch, clients, channels, height, width]"""
    return x.reshape(len(x), clients, -1, *x.shape[2:])
