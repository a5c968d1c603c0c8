"""Copies of a module, made faster than ``copy.deepcopy`` makes them.

A small client's training takes a few milliseconds, and ``deepcopy`` of its module one. Here the
module is written once, without its tensors, and read again for each copy.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types
import weakref
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

_BY_IDENTITY = (type, types.FunctionType, types.BuiltinFunctionType, weakref.ref)
"""What ``deepcopy`` passes on as it is."""


class Copies:
    """Makes copies that are equal to those of ``deepcopy``.

    Parameters
    ----------
    module : LightningModule
        The original; it must not be changed while it is copied.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self._module = module
        self._kept: list[Any] = []
        self._written: bytes | None = None
        try:
            self._written = self._write()
        except Exception:  # a user's module may hold anything: deepcopy may still be able to
            self._written = None

    def __call__(self) -> pl.LightningModule:
        """A copy, independent of the original."""
        if self._written is None:
            return copy.deepcopy(self._module)
        return cast(pl.LightningModule, _Reader(self._written, self._kept).load())

    def _write(self) -> bytes:
        written = io.BytesIO()
        _Writer(written, self._kept).dump(self._module)
        tensors = [value for value in self._kept if isinstance(value, Tensor)]
        storages = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
        if len(storages) < sum(tensor.numel() > 0 for tensor in tensors):
            raise pickle.PicklingError("tensors that share their memory")
        return written.getvalue()


class _Writer(pickle.Pickler):
    """Writes all but tensors, and what has no name to be found by."""

    def __init__(self, written: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(written, pickle.HIGHEST_PROTOCOL)
        self._kept, self._places = kept, dict[int, int]()

    def persistent_id(self, value: Any) -> int | None:
        if isinstance(value, Tensor):
            _check_plain(value)
        elif isinstance(value, _BY_IDENTITY):
            if _is_importable(value):
                return None
        elif hasattr(type(value), "__deepcopy__") and not isinstance(
            value, np.ndarray | np.generic
        ):
            raise pickle.PicklingError("is copied in a way of its own")
        else:
            return None
        if id(value) not in self._places:
            self._places[id(value)] = len(self._kept)
            self._kept.append(value)
        return self._places[id(value)]


class _Reader(pickle.Unpickler):
    """Reads one copy."""

    def __init__(self, written: bytes, kept: list[Any]) -> None:
        super().__init__(io.BytesIO(written))
        self._kept, self._made = kept, dict[int, Tensor]()

    def persistent_load(self, place: int) -> Any:
        value = self._kept[place]
        if not isinstance(value, Tensor):
            return value
        if (made := self._made.get(place)) is None:
            made = value.detach().clone()
            if isinstance(value, nn.Parameter):
                made = nn.Parameter(made, value.requires_grad)
            self._made[place] = made
        return made


def _check_plain(tensor: Tensor) -> None:
    """Raise if a clone is not what ``deepcopy`` makes of it."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    if type(tensor) is Tensor and (tensor.requires_grad or vars(tensor)):
        plain = False
    if not plain or tensor.is_quantized or tensor.grad is not None:
        raise pickle.PicklingError("a tensor that is more than its numbers")


def _is_importable(value: Any) -> bool:
    """Whether its name finds it."""
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for name in getattr(value, "__qualname__", "<>").split("."):
        found = getattr(found, name, None)
    return found is value
