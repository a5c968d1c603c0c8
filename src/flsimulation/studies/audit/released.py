"""What leaves a client under the run's ``[privacy]``: its update clipped, and with noise where it adds some."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flsimulation.experiment import Experiment
from flsimulation.privacy.examples import example_ledger
from flsimulation.privacy.ledger import Ledger, ledger_of


def noise_of(experiment: Experiment, sizes: Sequence[int]) -> float:
    """Noise that a client adds, as a multiple of the clipping norm; 0 where the server adds it, or nobody.

    Parameters
    ----------
    experiment : Experiment
        Its ``[privacy]`` decides: under ``local`` it is on the update, under ``example`` on the sum of the
        gradients of each step.
    sizes : sequence of int
        Examples that each client trains on.
    """
    mode = experiment.privacy.mode
    if mode == "example":
        ledger: Ledger | None = example_ledger(experiment, sizes)
    else:
        ledger = ledger_of(experiment) if mode == "local" else None
    return 0.0 if ledger is None else ledger.noise


def clipped(parts: Sequence[Tensor], clip: float) -> list[Tensor]:
    """The parts of a vector, scaled down to the norm if the vector is longer."""
    norm = float(torch.stack([part.double().norm() for part in parts]).norm())
    return [part * min(1.0, clip / max(norm, 1e-300)) for part in parts]


def with_noise(parts: Sequence[Tensor], sigma: float, rng: np.random.Generator) -> list[Tensor]:
    """The parts with Gaussian noise of this deviation on every number."""
    if not sigma:
        return [*parts]
    return [
        part + torch.from_numpy(rng.normal(0.0, sigma, part.shape)).to(part.dtype) for part in parts
    ]
