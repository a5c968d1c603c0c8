"""What a step changes beside its results, which a program of it would not change."""

from __future__ import annotations

import io
import pickle
import random
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from flsimulation.training.stacked.compiler.step import NotStackable

_P = ParamSpec("_P")
_T = TypeVar("_T")
_TRIES = 3
_NORMS = (WeightNorm, SpectralNorm)
_BY_IDENTITY = (nn.Module, type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_PLAIN = {bool, int, str, type(None)}
"""Types whose values cannot change."""
_CONTAINERS = {dict, list, set, OrderedDict}


class Draws(NotStackable):
    """A global random stream has gone on."""


def unless_another_drew(look: Callable[_P, _T]) -> Callable[_P, _T]:
    """Call ``look`` again when it raises `Draws`, up to three times in all.

    All threads of a process share the global random streams, and those of Flower's heartbeats and
    retries draw from Python's at any time. Code that draws itself does so each time.
    """

    @wraps(look)
    def looked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for _ in range(_TRIES - 1):
            with suppress(Draws):
                return look(*args, **kwargs)
        return look(*args, **kwargs)

    return looked


def random_states() -> list[Any]:
    """The states of the global random streams of Python, NumPy and PyTorch."""
    return [*foreign_random_states(), torch.random.get_rng_state().numpy().tobytes()]


def foreign_random_states() -> list[Any]:
    """The states of the global random streams of Python and NumPy."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global stream
    return [random.getstate(), (name, np.asarray(keys).tobytes(), *rest)]


def attributes(
    module: nn.Module, *, strict: bool = False, without: Collection[nn.Module] = ()
) -> list[Any]:
    """All that a module keeps, in a form that differs once a step has changed it.

    Parameters
    ----------
    module : Module
        With all its parts.
    strict : bool
        Whether what cannot be looked into counts as changed always, and not only where it is
        replaced: then equal forms are a proof.
    without : collection of Module
        Parts to pass over.
    """
    aside = {id(part) for part in without}
    parts = list(module.modules())
    known = {id(part) for part in parts} if strict else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some iterators can be pickled, but not for long
        return [
            (place, name, _form(value, known))
            for place, part in enumerate(parts)
            if id(part) not in aside
            for name, value in vars(part).items()
            if name not in _derived(part)
        ]


def _derived(part: nn.Module) -> set[str]:
    """What a part makes of its parameters, again whenever these are replaced or it is called."""
    if isinstance(part, nn.RNNBase):
        return {"_flat_weights", "_flat_weight_refs"}
    hooks = part._forward_pre_hooks.values()
    return {hook.name for hook in hooks if isinstance(hook, _NORMS)}


class _Pickler(pickle.Pickler):
    """Writes down what is inside of lists, dictionaries and objects; tensors by their version."""

    def __init__(self, written: io.BytesIO, known: set[int] | None) -> None:
        super().__init__(written)
        self._known = known

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return id(value), value._version
        if not isinstance(value, _BY_IDENTITY):
            return None
        seen = self._known is None or not isinstance(value, nn.Module) or id(value) in self._known
        if not seen:
            raise pickle.PicklingError("a module that is no part of this one")
        return id(value)


def _form(value: Any, known: set[int] | None) -> Any:
    if type(value) in _PLAIN or (type(value) in _CONTAINERS and not value):  # as most are
        return type(value), value if type(value) in _PLAIN else None
    written = io.BytesIO()
    try:
        _Pickler(written, known).dump(value)
    except Exception:
        return id(value) if known is None else object()
    return written.getvalue()
