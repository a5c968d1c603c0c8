"""Slow modules that others import and hardly use: a stand-in first, the module at its first use.

A stand-in has a few of the module's names itself. Any other one, and any submodule, imports the
module, which then takes its place. This is for processes of our own: no module of a program that
imports FLSimulation is replaced.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_known: dict[str, Mapping[str, Any]] = {}
"""What the stand-ins have themselves, by module; of those that may still be stood in for."""
_lock = threading.Lock()


class Deferred(ModuleType):
    """Stands in for a module until something is asked of it that it does not have."""

    def __init__(self, name: str, known: Mapping[str, Any]) -> None:
        super().__init__(name)
        vars(self)["_known"] = known

    def __getattr__(self, name: str) -> Any:
        known: Mapping[str, Any] = vars(self)["_known"]
        if name in known and not is_imported(self.__name__):
            return known[name]
        if name.startswith("__"):  # whoever looks through all modules imports none
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(imported(self.__name__), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(imported(self.__name__), name, value)

    def __dir__(self) -> list[str]:
        return dir(imported(self.__name__))


def defer(name: str, known: Mapping[str, Any]) -> None:
    """Let the next import of a module import a stand-in, unless the module is imported already.

    Parameters
    ----------
    name : str
        The module's full name.
    known : mapping
        What the stand-in has itself, by name.
    """
    if name not in sys.modules:
        _known[name] = known
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)


def is_imported(name: str) -> bool:
    """Whether a module, and not its stand-in, is imported, or is about to be."""
    return name in sys.modules and not isinstance(sys.modules[name], Deferred)


def imported(name: str) -> ModuleType:
    """The module itself, imported if it was not."""
    with _lock:
        _known.pop(name, None)
        if isinstance(sys.modules.get(name), Deferred):
            del sys.modules[name]
    with uncollected():
        return import_module(name)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage while modules are imported: they stay, and are looked through for nothing.

    Of the five seconds that PyTorch, Lightning and Flower take, it is one.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Finder(MetaPathFinder):
    """Finds stand-ins, and what is below them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Spec of a module that is deferred, or that is a submodule of such a one."""
        if isinstance(sys.modules.get(name.rpartition(".")[0]), Deferred):
            return ModuleSpec(name, _Below())
        known = _known.get(name)
        real = PathFinder.find_spec(name, path, target) if known is not None else None
        if known is None or real is None:
            return None
        spec = ModuleSpec(name, _StandIn(known), origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        return spec


class _StandIn(Loader):
    """Loads a stand-in."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._stand_in = known

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the stand-in."""
        return Deferred(spec.name, self._stand_in)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing."""


class _Below(Loader):
    """Loads a submodule after the module itself, as Python does; the finder must not import."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the submodule, which may be imported with the module."""
        imported(spec.name.rpartition(".")[0])
        module = import_module(spec.name)
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Undo what the import system noted in the module, which is complete."""
        if module.__spec__ is not self._own:  # it is where a module refuses to be noted in
            module.__spec__ = self._own


_FINDER = _Finder()
