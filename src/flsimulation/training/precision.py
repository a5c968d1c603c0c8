"""A module's steps in the precision of ``train.precision``, as Lightning's Trainer takes them.

For what takes a module's steps under vmap or without a fit; a fit by itself has Lightning's own plugins
(`precisions.py`). Source: those plugins, ``HalfPrecision``, ``DoublePrecision`` and ``MixedPrecision``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from flsimulation.models.lightning_modules import defines

_TRUE = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
_STEPS = ("training_step", "validation_step", "test_step")
FUSED: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
"""Types of parameters whose fused optimizers round as the others do."""


def in_precision(module: pl.LightningModule, precision: str) -> pl.LightningModule:
    """A copy of a module whose tensors and steps are in this precision.

    Parameters
    ----------
    module : LightningModule
        The model; not changed.
    precision : str
        As of ``train.precision``; of ``16-mixed`` only the types, not the scale of the loss.

    Returns
    -------
    LightningModule
        Its steps take batches in the precision of the data.
    """
    module = copy.deepcopy(module)
    if precision == "32-true":
        return module
    if (dtype := _TRUE.get(precision)) is not None:
        module = module.to(dtype=dtype)
    narrow = torch.float16 if precision == "16-mixed" else torch.bfloat16
    cls = type(module)
    steps: Mapping[str, Any] = {
        name: _within(getattr(cls, name), dtype, narrow) for name in _STEPS if defines(name, module)
    }
    module.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__, **steps})
    return module


def _within(
    step: Callable[..., Any], dtype: torch.dtype | None, narrow: torch.dtype
) -> Callable[..., Any]:
    """The step, with inputs and new tensors of the type, or with autocast to the narrow one."""

    def converted(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating and dtype is not None else value

    @functools.wraps(step)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(converted, args), tree_map(converted, kwargs)
        with _default(dtype) if dtype is not None else _autocast(self, narrow):
            return step(self, *args, **kwargs)

    return run


def _autocast(module: Any, narrow: torch.dtype) -> torch.autocast:
    device = next(module.parameters()).device.type
    return torch.autocast(device, dtype=narrow, cache_enabled=False)


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
