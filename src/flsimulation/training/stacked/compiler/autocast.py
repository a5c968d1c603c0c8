"""The types of ``torch.autocast`` for a step of many clients.

``vmap`` takes calls apart before autocast sees them (a linear layer becomes a product and a sum, of
which only the product is cast), so that a step would see wider types than one client's alone. So the
calls that autocast has a type for get their arguments in it before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

_NARROW = {
    *(functional.linear, functional.conv1d, functional.conv2d, functional.conv3d),
    *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
    *(functional.scaled_dot_product_attention, functional.multi_head_attention_forward),
    *(torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot, torch.einsum),
    *(torch.addmm, torch.baddbmm, torch.addbmm, Tensor.addmm, Tensor.baddbmm, Tensor.addbmm),
    *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.dot),
    *(Tensor.__matmul__, Tensor.__rmatmul__),
}
"""What autocast computes in the narrow type."""
_WIDE = {
    *(functional.cross_entropy, functional.nll_loss, functional.mse_loss, functional.l1_loss),
    *(functional.smooth_l1_loss, functional.huber_loss, functional.binary_cross_entropy),
    *(functional.binary_cross_entropy_with_logits, functional.kl_div),
    *(functional.cosine_embedding_loss, functional.poisson_nll_loss, functional.multi_margin_loss),
}
"""What it computes in float32."""
_KEEPING = {functional.layer_norm, functional.group_norm, functional.instance_norm}
"""What returns the type of its input on a CPU, whatever the type of its weights."""


def cast(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call in the type in which autocast, where it is on, computes it."""
    if func not in _NARROW and func not in _WIDE:
        return args, kwargs
    device = next((t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), "")
    if not device or not torch.is_autocast_enabled(device):
        return args, kwargs
    dtype = torch.get_autocast_dtype(device) if func in _NARROW else torch.float32

    def converted(value: Any) -> Any:
        known = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if known and value.dtype != torch.float64 else value

    return tree_map(converted, args), tree_map(converted, kwargs)


def kept(func: Callable[..., Any], result: Any, args: tuple[Any, ...]) -> Any:
    """The result of a call in the type that it has under autocast."""
    if func not in _KEEPING or not args or not isinstance(args[0], Tensor):
        return result
    on_cpu = args[0].device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return result.to(args[0].dtype) if on_cpu else result
