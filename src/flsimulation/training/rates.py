"""Learning rates that fall from round to round, whatever a module's own schedulers do in a round."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from flsimulation.experiment.spec import Train


def rate_factor(spec: Train, round: int) -> float:
    """Factor on the module's learning rates in a round, whose number is from 1."""
    return float(spec.learning_rate_decay ** max(0, round - 1))


def scale_rates(optimizer: Optimizer, factor: float) -> None:
    """Have an optimizer take each step with its learning rates times a factor.

    The rates are the module's own again after each step: so all that its schedulers compute from
    them (a warm-up, the lowest rate of a cosine, OneCycleLR) keeps its form, and is scaled.
    """
    if factor == 1:
        return
    own: list[Any] = []

    def scale(optimizer: Optimizer, *_: Any) -> None:
        own[:] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor  # not in place: it may be a tensor

    def restore(optimizer: Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, own, strict=True):
            group["lr"] = rate

    optimizer.register_step_pre_hook(scale)
    optimizer.register_step_post_hook(restore)
