"""What a fit without a Trainer has beside the module and its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from flsimulation.training.callbacks import Proximal
from flsimulation.training.precisions import Precision


class Around(NamedTuple):
    """What a fit has beside the module and its batches."""

    device: torch.device
    precision: Precision
    clip: float
    """Largest norm of the gradient; 0 for no clipping."""
    rate_factor: float = 1.0
    """On the learning rates of each step."""
    proximal: Proximal | None = None
    check_time: Callable[[], None] | None = None
    """Raises once the result is too late."""
