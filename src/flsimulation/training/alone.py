"""A module's step outside a Trainer: on a copy, with random streams of its own."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl

from flsimulation import seeds
from flsimulation.models.lightning_modules import defines

_EVALUATION = ("validation_step", "test_step")  # the first that the module has is its evaluation


def evaluation_step(module: pl.LightningModule) -> str | None:
    """Name of the step that evaluates the module; None without one."""
    return next((step for step in _EVALUATION if defines(step, module)), None)


def detached(module: pl.LightningModule) -> pl.LightningModule:
    """A copy whose ``self.log`` does nothing; it has no Trainer."""
    copied = copy.deepcopy(module)
    for name in ("log", "log_dict"):
        vars(copied)[name] = _ignore
    return copied


def _ignore(*_: Any, **__: Any) -> None:
    """Take what a step logs, and do nothing."""


def take(module: pl.LightningModule, step: str, batch: Any) -> Any:
    """Call a step for a batch, with the batch's number if it takes one; returns its result."""
    own = getattr(module, step)
    return own(batch, *([0] if len(inspect.signature(own).parameters) > 1 else []))


@contextlib.contextmanager
def unnoticed() -> Iterator[None]:
    """Restore the random streams after the block, and show no warnings of what it calls.

    A warning that matters is raised or logged again when clients train.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with seeds.global_streams(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
