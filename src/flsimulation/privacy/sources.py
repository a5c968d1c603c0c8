"""Where noise and samples come from: the run's seed, or the operating system."""

from __future__ import annotations

from flsimulation import seeds
from flsimulation.experiment import Experiment
from flsimulation.privacy.draws import Draws, SecretDraws


def is_reproducible(experiment: Experiment) -> bool:
    """Whether noise is a function of the seed: not on a network, where clients know the seed."""
    return experiment.runtime.is_simulation


def generator(experiment: Experiment, purpose: str, round: int, partition: int = 0) -> Draws:
    """A generator for noise or a sample.

    Parameters
    ----------
    experiment : Experiment
        In one process and on Ray the stream of its seed; on a network a new one, whose key is of
        the operating system's entropy.
    purpose, round, partition
        As of `seeds.rng`.
    """
    if is_reproducible(experiment):
        return seeds.rng(experiment.seed, purpose, round, partition)
    return SecretDraws()
