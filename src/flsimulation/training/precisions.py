"""``train.precision`` of one client's fit without a Trainer, by Lightning's own plugins.

Steps under vmap and evaluations, which have no fit, are in `precision.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins import precision as plugins
from torch import Tensor
from torch.optim import Optimizer

_PLAIN: Any = contextlib.nullcontext()


class Precision:
    """The precision of one client's fit.

    Parameters
    ----------
    name : str
        As ``train.precision``.
    device : str
        Type of the device.
    """

    def __init__(self, name: str, device: str) -> None:
        self.plugin = _plugin(name, device)
        self.is_plain = type(self.plugin) is plugins.Precision
        self.scaler: Any = getattr(self.plugin, "scaler", None)
        """Scales losses up against underflow; it adapts to the client's gradients."""

    def convert(self, module: pl.LightningModule) -> None:
        """Convert the parameters, in place."""
        if not self.is_plain:
            self.plugin.convert_module(module)

    def converted(self, batch: Any) -> Any:
        """The batch as the module takes it."""
        return batch if self.is_plain else self.plugin.convert_input(batch)

    def step(self) -> Any:
        """A context for a training step."""
        return _PLAIN if self.is_plain else self.plugin.train_step_context()

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def take_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        before: Callable[[], None],
        **options: Any,
    ) -> Any:
        """Take a step with scaled gradients; the scaler leaves it out where they overflow."""
        found = closure()
        unscales_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
        if found is not None and not unscales_itself:
            self.scaler.unscale_(optimizer)
        before()
        if found is None:
            return None
        stepped = self.scaler.step(optimizer, **options)
        self.scaler.update()
        return stepped


def _plugin(name: str, device: str) -> Any:
    if name in ("bf16-mixed", "16-mixed"):
        return plugins.MixedPrecision(name, device)  # type: ignore[arg-type]
    if name == "bf16-true":
        return plugins.HalfPrecision("bf16-true")
    return plugins.DoublePrecision() if name == "64-true" else plugins.Precision()
