"""Attention in calls for which ``vmap`` has a form, with all that PyTorch's own takes."""

from __future__ import annotations

import math
import types
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention` is documented."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = query @ key.transpose(-2, -1) * scale
    if is_causal:
        shape = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    shares = weights.softmax(-1) if attn_mask is None else _masked(weights, attn_mask)
    if dropout_p > 0:
        shares = functional.dropout(shares, dropout_p)
    return shares @ value


def _masked(weights: Tensor, mask: Tensor) -> Tensor:
    """The softmax of what a mask leaves; 0 where it leaves nothing, as PyTorch has it."""
    hidden = ~mask if mask.dtype == torch.bool else mask == -math.inf
    nothing = hidden.all(-1, keepdim=True)
    seen = weights if mask.dtype == torch.bool else weights + mask
    return (
        seen.masked_fill(hidden, -math.inf)
        .masked_fill(nothing, 0.0)
        .softmax(-1)
        .masked_fill(nothing, 0.0)
    )


def _as_numbers(mask: Tensor | None, *_: Any, target_type: torch.dtype, **__: Any) -> Tensor | None:
    """A mask as what is added to the weights; PyTorch's own writes it in place."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=target_type).masked_fill(mask, -math.inf)


multi_head_attention: Any = types.FunctionType(
    functional.multi_head_attention_forward.__code__,
    {
        **vars(functional),
        "scaled_dot_product_attention": attention,
        "_canonical_mask": _as_numbers,
        "has_torch_function": lambda _: False,  # who calls this has looked already
    },
    argdefs=functional.multi_head_attention_forward.__defaults__,
)
"""PyTorch's own function with `attention` in place of its own, which no mode sees it call."""
