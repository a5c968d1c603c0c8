"""What leaves a client under the run's ``[privacy]``: its update clipped, and with noise where it adds some."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flsimulation.experiment import Experiment
from flsimulation.privacy.accountant import noise_for
from flsimulation.privacy.ledger import ledger_of


def noise_of(experiment: Experiment, held: int) -> float:
    """Noise that a client adds, as a multiple of the clipping norm; 0 where the server adds it, or nobody.

    Parameters
    ----------
    experiment : Experiment
        Its ``[privacy]`` decides.
    held : int
        Examples that the client trains on; under ``example`` the noise is on the sum of each step's gradients.
    """
    spec = experiment.privacy
    if spec.mode == "local":
        ledger = ledger_of(experiment)
        return ledger.noise if ledger is not None else 0.0
    if spec.mode != "example" or spec.noise_multiplier:
        return spec.noise_multiplier if spec.mode == "example" else 0.0
    batch = experiment.train.batch_size
    times = experiment.strategy.rounds * experiment.train.epochs * math.ceil(held / batch)
    return noise_for(spec.epsilon, min(1.0, batch / held), times, spec.delta, spec.accountant)


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
