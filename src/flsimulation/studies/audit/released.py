"""What leaves a client under the run's ``[privacy]``: its update clipped, and with noise where it adds some."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flsimulation.experiment import Experiment
from flsimulation.privacy.accountant import noise_for


def noise_of(experiment: Experiment, held: int) -> float:
    """Noise that a client adds, as a multiple of the clipping norm; 0 where the server adds it, or nobody.

    Parameters
    ----------
    experiment : Experiment
        Its ``[privacy]`` decides.
    held : int
        Examples that the client trains on; under ``example`` the noise is on the sum of each step's gradients.
    """
    spec, rounds = experiment.privacy, experiment.strategy.rounds
    if spec.mode in ("none", "central"):
        return 0.0
    if spec.noise_multiplier:
        return spec.noise_multiplier
    rate, times = 1.0, rounds
    if spec.mode == "example":
        batch = experiment.train.batch_size
        rate = min(1.0, batch / held)
        times = rounds * experiment.train.epochs * math.ceil(held / batch)
    return noise_for(spec.epsilon, rate, times, spec.delta, spec.accountant)


def released(
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    experiment: Experiment,
    held: int,
    rng: np.random.Generator,
) -> list[Tensor]:
    """The client's parameters as they leave it.

    Parameters
    ----------
    before, after : sequence of Tensor
        The trained parameters of the global model, and of the client's.
    experiment, held
        As of `noise_of`; DP-SGD (``example``) was a part of the training.
    rng : Generator
        Of the noise.
    """
    spec = experiment.privacy
    if spec.mode not in ("central", "local"):
        return [*after]
    update = clipped([new - old for new, old in zip(after, before, strict=True)], spec.clip)
    noisy = with_noise(update, noise_of(experiment, held) * spec.clip, rng)
    return [old + own for old, own in zip(before, noisy, strict=True)]


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
