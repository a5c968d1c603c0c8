"""How a client's training fails, in the same words whichever way it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flsimulation.errors import ClientError


def too_late() -> ClientError:
    """The round's deadline came first."""
    return ClientError("deadline", "it was not done before the round's deadline")


def no_step() -> ClientError:
    """No batch returned a loss."""
    return ClientError("error", "it made no optimizer step; training_step must return the loss")


def loss_not_finite(loss: float) -> ClientError:
    """The mean training loss is NaN or infinite."""
    return ClientError("diverged", f"its training loss is {loss}")


def weights_not_finite(name: str) -> ClientError:
    """A parameter or buffer holds a NaN or an infinity."""
    return ClientError("diverged", f"its weights {name} are not finite")


def diverged(after: Tensor, before: Tensor) -> Tensor:
    """Where training made a number NaN or infinite that was not before; bool like ``after``.

    A causal mask holds infinities from the start: they are not a result of training.
    """
    return ~after.isfinite() & before.isfinite()


def first_diverged(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that training made NaN or infinite somewhere; None without one."""
    for name, value in after.items():
        if not value.is_floating_point() or _is_finite(value):
            continue
        if bool(diverged(value, before[name].to(value.device)).any()):
            return name
    return None


def _is_finite(value: Tensor) -> bool:
    """Whether all numbers are; a finite sum says so soonest."""
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())
