"""What a step logs with ``self.log``, taken in without a Trainer and reduced as Lightning does it.

Source of the rules: ``self.log`` in Lightning's documentation of logging. A value logged on steps
is the last step's; a value logged on epochs is reduced over the epoch's batches, by default to the
mean weighted by the batches' sizes; a value logged on both has both, under two more names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from flsimulation.training.measured import several_numbers
from flsimulation.training.objects import MetricObjects
from flsimulation.training.stacked.compiler.facts import Fact

_REDUCTIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": np.mean,
    "avg": np.mean,
    "sum": np.sum,
    "min": np.min,
    "max": np.max,
}
_FUNCTIONS: dict[Any, str] = {
    torch.mean: "mean", torch.sum: "sum", sum: "sum",
    torch.min: "min", min: "min", torch.max: "max", max: "max",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "prog_bar", "logger", "enable_graph", "sync_dist", "sync_dist_group", "add_dataloader_idx",
    "rank_zero_only",
}  # fmt: skip


class CannotTake(Exception):  # noqa: N818 - no error: a module that logs so is trained with a Trainer
    """A way of logging that only Lightning's Trainer understands."""


@dataclass(frozen=True)
class Logged:
    """How one name is logged."""

    name: str
    on_step: bool
    on_epoch: bool
    reduction: str
    batch_size: int | None
    """As the module passed it; None for the batch's own."""

    def for_size(self, examples: int) -> Logged:
        """The same, without a size that is that of the batch."""
        return dataclasses.replace(self, batch_size=None) if self.batch_size == examples else self


@dataclass
class Log:
    """Stands in for ``self.log`` during one step.

    Parameters
    ----------
    training : bool
        Whether the step is a training step, whose values are by default those of the last step.
    """

    training: bool
    how: list[Logged] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    metrics: MetricObjects | None = None
    """Takes the metric objects; None where only a Trainer can."""
    ended: bool = False
    """Whether the batches of the epoch are over."""

    def log(
        self,
        name: str,
        value: Any,
        *positional: Any,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        **others: Any,
    ) -> None:
        """Take a value in. Raises `CannotTake`, or `ClientError` for what no Trainer takes."""
        if isinstance(value, Metric) and self.metrics is not None and not positional:
            for own in metric_names(name, on_step, on_epoch):
                self.metrics.log(own, value)
            return
        if self.ended and self.metrics is not None and self.metrics.computed(name, value):
            return
        if isinstance(value, Metric):
            raise CannotTake(f"logs {name!r}, a metric object")
        if positional or metric_attribute or others.keys() - _WITHOUT_EFFECT:
            raise CannotTake(f"logs {name!r} in a way of its own")
        if isinstance(value, Fact):
            value = value.tensor()
        if isinstance(value, int | float):
            value = torch.full((), float(value))  # a call, so that a graph has the number
        if isinstance(value, Tensor) and value.numel() != 1 and not self.training:
            raise several_numbers(name, value)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise CannotTake(f"logs {name!r}, which is no number")
        if any(known.name == name for known in self.how):
            raise CannotTake(f"logs {name!r} twice in a step")
        on_step = self.training if on_step is None else on_step
        on_epoch = not self.training if on_epoch is None else on_epoch
        reduction = _FUNCTIONS.get(reduce_fx, str(reduce_fx)).lower()
        if reduction not in _REDUCTIONS or not (on_step or on_epoch):
            raise CannotTake(f"logs {name!r} in a way of its own")
        self.how.append(Logged(name, on_step, on_epoch, reduction, batch_size))
        value = value.detach().reshape(())
        self.values.append(value if value.is_floating_point() else value.float())

    def log_dict(self, dictionary: Mapping[str, Any], *positional: Any, **how: Any) -> None:
        """Take several values in. Raises `CannotTake`."""
        own = {"keep_base": False, "copy_state": False}  # as Lightning asks a collection
        is_collection = isinstance(dictionary, MetricCollection)
        items: Any = dictionary.items(**own) if is_collection else dictionary.items()
        for name, value in items:
            self.log(name, value, *positional, **how)


def metric_names(name: str, on_step: bool | None, on_epoch: bool | None) -> list[str]:
    """Names under which an evaluation has a metric object's value: as for numbers."""
    if on_epoch is False:
        return []
    return [name, f"{name}_epoch"] if on_step else [name]


def reduced(
    how: list[Logged], values: np.ndarray, sizes: np.ndarray, *, training: bool = True
) -> dict[str, float]:
    """One client's logged values, by the names that Lightning gives them and in its order.

    Parameters
    ----------
    how : list of Logged
        One for each value.
    values : float [batches, values]
        Of each batch of the last epoch.
    sizes : int [batches] or [batches, values]
        Weights in a mean: the examples of each batch.
    training : bool
        Whether the steps were training steps: of others, the values on steps are not kept.
    """
    found = {}
    if training:
        for logged, of_batches in zip(how, values.T, strict=True):
            if logged.on_step:
                found[logged.name] = of_batches[-1]
                if logged.on_epoch:
                    found[f"{logged.name}_step"] = of_batches[-1]
    weights = np.broadcast_to(sizes.reshape(len(sizes), -1), values.shape)
    for logged, of_batches, weight in zip(how, values.T, weights.T, strict=True):
        if logged.on_epoch:
            found[logged.name] = _over_epoch(logged, of_batches, weight)
            if logged.on_step:
                found[f"{logged.name}_epoch"] = found[logged.name]
    return {name: float(value) for name, value in found.items()}


def _over_epoch(logged: Logged, values: np.ndarray, sizes: np.ndarray) -> float:
    if len(values) == 1:
        return float(values[0])
    if logged.reduction in ("mean", "avg"):
        weights = sizes if logged.batch_size is None else np.ones_like(sizes)
        return float(np.sum(values * weights) / np.sum(weights))
    return float(_REDUCTIONS[logged.reduction](values))
