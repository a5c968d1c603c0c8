"""What one evaluation by a Trainer logs that its own reduction does not keep."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torchmetrics import Metric

from flsimulation.training.logged import metric_names
from flsimulation.training.measured import Measured, MetricObjects, several_numbers
from flsimulation.training.scores import RETURNED, measured, returned_loss

_POSITIONAL = ("prog_bar", "logger", "on_step", "on_epoch")  # of ``self.log``, after the value


class Watched(pl.Callback):
    """Takes metric objects, and the loss that a step returns, in the Trainer's place.

    The Trainer computes a metric object, and fails where it is not defined. Inside the block,
    ``self.log`` of the module comes here first.

    Parameters
    ----------
    module : LightningModule
        The module that is evaluated, and is not used afterwards.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self._module, self._log = module, module.log
        self._metrics = MetricObjects(module)
        self._ended = False
        self._sum, self._examples = 0.0, 0

    def __enter__(self) -> Watched:
        vars(self._module)["log"] = self.log
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        vars(self._module).pop("log", None)

    def log(self, name: str, value: Any, *positional: Any, **how: Any) -> None:
        """``LightningModule.log``. Raises `ClientError` for what is not one number."""
        if isinstance(value, Metric):
            given = {**dict(zip(_POSITIONAL, positional, strict=False)), **how}
            for own in metric_names(name, given.get("on_step"), given.get("on_epoch")):
                self._metrics.log(own, value)
            return
        if isinstance(value, Tensor) and value.numel() != 1:
            raise several_numbers(name, value)
        if not (self._ended and self._metrics.computed(name, value)):
            self._log(name, value, *positional, **how)

    def measured(self, logged: Mapping[str, Tensor]) -> Measured:
        """All scores, under their standard names. Raises `ClientError`."""
        values = {name: float(value) for name, value in logged.items()}
        if self._examples:
            values[RETURNED] = self._sum / self._examples
        return measured(self._metrics.measured(values))

    def _add(self, _: Any, __: Any, outputs: Any, batch: Any, *___: Any) -> None:
        """Add a batch's loss, weighted by its examples."""
        if (loss := returned_loss(outputs)) is not None:
            self._sum += float(loss) * len(batch[1])
            self._examples += len(batch[1])

    def _end(self, *_: Any) -> None:
        """Note that the batches are over: a callback is called before its module."""
        self._ended = True

    on_validation_batch_end = on_test_batch_end = _add  # type: ignore[assignment]
    on_validation_epoch_end = on_test_epoch_end = _end  # type: ignore[assignment]
