"""A module's ``configure_optimizers`` without a Trainer, for clients that train together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

from flsimulation import seeds
from flsimulation.models.lightning_modules import SILENT
from flsimulation.training.facts import OneDevice
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.effects import Draws, random_states, unless_another_drew
from flsimulation.training.stacked.eligible import Optimization, optimization


class Configuring:
    """Makes a client's optimizer and schedulers, and notes what they depend on.

    Parameters
    ----------
    module : LightningModule
        The model; as it was after each call.
    epochs : int
        Local epochs.
    accumulate : int
        Batches for each step of the optimizer.

    Raises
    ------
    NotStackable
        As a call; or if the module keeps an optimizer from one call to the next, or draws: a client
        alone draws these numbers from the stream of its steps.
    """

    def __init__(self, module: pl.LightningModule, epochs: int, accumulate: int = 1) -> None:
        self._module, self._epochs, self._accumulate = module, epochs, accumulate
        self._lock = threading.Lock()  # waves on several threads call the user's module
        self.by_batches = False
        """Whether the number of a client's batches was asked for."""
        self.by_round = False
        """Whether the number of the round was asked for."""
        self._check()

    def __call__(self, batches: int = 1, round: int = 1) -> Optimization:
        """A new optimizer and its schedulers, for a fit in this round with as many batches an epoch.

        Raises
        ------
        NotStackable
            If the module needs more of a Trainer, or clients cannot train together with these.
        """
        with self._lock, self._standing_in(batches, round):
            return optimization(self._module)

    @unless_another_drew
    def _check(self) -> None:
        with seeds.global_streams(0):
            before = random_states()
            if self()[0] is self()[0]:
                raise NotStackable("configure_optimizers returns the same optimizer each time")
            if random_states() != before:
                raise Draws("configure_optimizers draws random numbers")

    @contextmanager
    def _standing_in(self, batches: int, round: int) -> Iterator[None]:
        def number(_: Any) -> int:
            self.by_round = True
            return round

        trainer = _FitToCome(self, self._epochs, batches, self._accumulate)
        names: dict[str, Any] = {
            "trainer": property(lambda _: trainer),
            "federated_round": property(number),
            "logger": property(lambda _: SILENT),
            "loggers": property(lambda _: [SILENT]),
            "print": staticmethod(lambda *_, **__: None),
        }
        cls = type(self._module)
        self._module.__class__ = type(cls.__name__, (cls,), names)
        try:
            yield
        finally:
            self._module.__class__ = cls


class _FitToCome(OneDevice):
    """What a Trainer knows before a client's fit; nothing else of it is there."""

    global_step = current_epoch = 0

    def __init__(self, asked: Configuring, epochs: int, batches: int, accumulate: int) -> None:
        self.accumulate_grad_batches = accumulate
        self._asked, self.max_epochs, self._batches = asked, epochs, batches

    @property
    def num_training_batches(self) -> int:
        """Batches in an epoch."""
        self._asked.by_batches = True
        return self._batches

    @property
    def estimated_stepping_batches(self) -> int:
        """Optimizer steps of the fit."""
        return -(-self.num_training_batches // self.accumulate_grad_batches) * self.max_epochs
