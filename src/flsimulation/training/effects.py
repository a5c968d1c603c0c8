"""What a training step changes beside its results, which a program of it would not change."""

from __future__ import annotations

import io
import pickle
import random
import types
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_BY_IDENTITY = (nn.Module, type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)


def random_states() -> list[str]:
    """The states of the global random streams of Python, NumPy and PyTorch."""
    legacy = np.random.get_state()  # noqa: NPY002 - the global stream
    return [str(random.getstate()), str(legacy), str(torch.random.get_rng_state().tolist())]


def attributes(module: nn.Module) -> list[Any]:
    """All that a module keeps, in a form that differs once a step has changed it.

    What cannot be pickled counts as changed only where it is replaced.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some iterators can be pickled, but not for long
        return [
            (place, name, _form(value))
            for place, part in enumerate(module.modules())
            for name, value in vars(part).items()
        ]


class _Pickler(pickle.Pickler):
    """Writes down what is inside of lists, dictionaries and objects; tensors by their version."""

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return id(value), value._version
        return id(value) if isinstance(value, _BY_IDENTITY) else None


def _form(value: Any) -> Any:
    written = io.BytesIO()
    try:
        _Pickler(written).dump(value)
    except Exception:
        return id(value)
    return written.getvalue()
