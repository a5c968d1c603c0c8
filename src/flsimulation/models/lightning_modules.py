"""The two packages that PyTorch Lightning is published as, and the one that a module comes from.

``lightning.pytorch`` and ``pytorch_lightning`` hold the same code as different classes: a module of
the one is no LightningModule to the other, and only its own package's Trainer takes it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from lightning_utilities.core.overrides import is_overridden

PACKAGES = ("pytorch_lightning", "lightning.pytorch")
"""Names of the packages; FLSimulation needs the first, a user's module may need the second."""


def package_of(cls: type) -> Any:
    """The package whose LightningModule a class is derived from; None if it is no such class.

    Only packages that are already imported are looked at, as a module's own is.
    """
    found = (sys.modules.get(name) for name in PACKAGES)
    return next((p for p in found if p is not None and issubclass(cls, p.LightningModule)), None)


def base_of(cls: type) -> Any:
    """The LightningModule that a class is derived from. Raises `TypeError` if it is of neither."""
    package = package_of(cls)
    if package is None:
        raise TypeError(f"{cls.__qualname__} is no LightningModule")
    return package.LightningModule


def defines(method: str, module: Any) -> bool:
    """Whether a LightningModule has a method of its own in place of Lightning's."""
    return is_overridden(method, module, base_of(type(module)))


def is_sigterm(error: BaseException) -> bool:
    """Whether a Trainer of either package ended because of SIGTERM."""
    loaded = [name for name in PACKAGES if name in sys.modules]
    known = (import_module(f"{name}.utilities.exceptions").SIGTERMException for name in loaded)
    return isinstance(error, tuple(known))


class Nothing:
    """Stands in for an object of which any attribute, call or item has no effect."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for what is not there
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Nothing:
        """Do nothing."""
        return self

    def __getitem__(self, _: Any) -> Nothing:
        return self

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def __setattr__(self, _: str, __: Any) -> None:
        pass

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(())

    def __bool__(self) -> bool:
        return True


class SilentLogger:
    """A logger that does nothing: for a module that calls ``self.logger``, of either package.

    A run's clients would write thousands of logs; what a module logs with ``self.log`` is in the
    run directory.
    """

    name = version = root_dir = log_dir = save_dir = None
    experiment = Nothing()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.experiment


SILENT = SilentLogger()
"""The one that all modules share."""
