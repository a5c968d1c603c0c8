"""Convolutions of many clients at once, as batched products of matrices.

Stacked by vmap, the clients' convolutions are one with a group for each client. On a GPU they are
written as unfolded images times the weights, one product for each group, so that nothing hangs on
how its library treats many groups. docs/decisions/0012 has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def replacements(device: torch.device) -> dict[Any, Callable[..., Any]]:
    """What to trace on this device in place of ATen's calls: see `recorded`."""
    if device.type == "cpu":  # where grouped convolutions are faster
        return {}
    return {
        aten.convolution.default: _convolution,
        aten.convolution_backward.default: _convolution_backward,
    }


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Sequence[int],
    groups: int,
) -> Any:
    if not _has_form(x, transposed, groups):
        return NotImplemented
    kernel = weight.shape[2:]
    columns = _columns(x, kernel, stride, padding, dilation, groups)
    height, width = (
        (size + 2 * pad - reach * (extent - 1) - 1) // step + 1
        for size, extent, pad, reach, step in zip(
            x.shape[2:], kernel, padding, dilation, stride, strict=True
        )
    )
    product = torch.bmm(_rows(weight, groups), columns)  # [groups, out, batch x places]
    product = product.view(groups, -1, len(x), height, width).permute(2, 0, 1, 3, 4)
    result = product.reshape(len(x), len(weight), height, width)
    return result if bias is None else result + bias.view(1, -1, 1, 1)


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> Any:
    if not _has_form(x, transposed, groups):
        return NotImplemented
    kernel, batch = weight.shape[2:], len(x)
    rows = gradient.reshape(batch, groups, len(weight) // groups, -1).permute(1, 2, 0, 3)
    rows = rows.reshape(groups, len(weight) // groups, -1)
    of_x = of_weight = None
    if wanted[0]:
        columns = torch.bmm(_rows(weight, groups).transpose(1, 2), rows)
        columns = columns.view(groups, columns.shape[1], batch, -1).permute(2, 0, 1, 3)
        columns = columns.reshape(batch, -1, columns.shape[3])
        of_x = aten.col2im(columns, x.shape[2:], kernel, dilation, padding, stride)
    if wanted[1]:
        columns = _columns(x, kernel, stride, padding, dilation, groups)
        of_weight = torch.bmm(rows, columns.transpose(1, 2)).view(weight.shape)
    return of_x, of_weight, gradient.sum((0, 2, 3)) if wanted[2] else None


def _has_form(x: Tensor, transposed: bool, groups: int) -> bool:
    """Whether it is what vmap makes of convolutions in two dimensions."""
    return x.ndim == 4 and groups > 1 and not transposed


def _rows(weight: Tensor, groups: int) -> Tensor:
    """Each group's weights as a matrix, [groups, out, in x places of the kernel]."""
    return weight.reshape(groups, len(weight) // groups, -1)


def _columns(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """What each place of the result sees, [groups, in x places of the kernel, batch x places]."""
    columns: Tensor = aten.im2col(x, kernel, dilation, padding, stride)
    columns = columns.view(len(x), groups, columns.shape[1] // groups, -1).permute(1, 2, 0, 3)
    return columns.reshape(groups, columns.shape[1], -1)
