"""What DP-SGD in the clients spends: the noise of a step, and the epsilon of any number of fits.

A client's step is noise on a sum over a Poisson sample of its examples; a fit is as many steps as its
epochs have. Neighbours differ by one example of one client. How many examples a client has is public.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flsimulation.data.federated import FederatedData
from flsimulation.errors import InputError
from flsimulation.experiment import Experiment
from flsimulation.privacy.accountant import Mechanism, noise_for, times_within, worst_of
from flsimulation.privacy.ledger import Ledger
from flsimulation.privacy.sources import is_reproducible

_GROUPS = 32  # of clients, at most: the accountant takes some milliseconds for each


class Noisy(NamedTuple):
    """How DP-SGD clips and what it adds."""

    clip: float
    """Largest norm of the gradient of one example."""
    multiplier: float
    """Standard deviation of the noise on a sum of them, divided by ``clip``."""


@dataclass(frozen=True)
class ExampleLedger(Ledger):
    """The noise of DP-SGD, and the epsilon of the client that is worst off.

    ``mechanism`` is that of the client with the largest rate.
    """

    mechanisms: tuple[tuple[Mechanism, int], ...] = ()
    """Of clients with the same rate: a step, and the steps of a fit."""

    def epsilon(self, times: int) -> float:
        """Epsilon of a client's example after the client took part in so many rounds."""
        return _worst(self.mechanisms, times, self)

    def permitted(self, most: int) -> int:
        """How many of at most so many rounds the budget allows."""
        if self.budget == 0:
            return most
        return min(
            times_within(own, self.budget, self.delta, most * steps, self.accountant) // steps
            for own, steps in self.mechanisms
        )


def sizes_of(experiment: Experiment, data: FederatedData) -> list[int]:
    """Examples that each client trains on, of an experiment with DP-SGD; empty for all others."""
    if experiment.privacy.mode != "example":
        return []
    return [data.train_size(partition) for partition in range(len(data.partitions))]


def example_mechanisms(
    experiment: Experiment, sizes: Sequence[int], noise: float = 1.0
) -> list[tuple[Mechanism, int]]:
    """A step's mechanism and the steps of a fit, for the clients of each rate.

    Parameters
    ----------
    experiment : Experiment
        Its clients' batch size and epochs.
    sizes : sequence of int
        Examples that each client trains on.
    noise : float
        The noise multiplier.

    Returns
    -------
    list
        Where there are many, the largest rate and most steps stand for those of clients that are alike:
        epsilon is then a little too large, never too small.
    """
    found = set[tuple[float, int]]()
    for partition, size in enumerate(sizes):
        if size:
            spec = experiment.of_client(partition).train
            found.add((min(1.0, spec.batch_size / size), spec.epochs * -(-size // spec.batch_size)))
    groups = sorted(found)
    if len(groups) > _GROUPS:
        step = -(-len(groups) // _GROUPS)
        parts = [groups[i : i + step] for i in range(0, len(groups), step)]
        groups = [(max(rate for rate, _ in p), max(steps for _, steps in p)) for p in parts]
    return [(Mechanism(noise, rate), steps) for rate, steps in groups]


def example_ledger(experiment: Experiment, sizes: Sequence[int]) -> ExampleLedger | None:
    """The ledger of an experiment with DP-SGD; None for all others.

    Parameters
    ----------
    experiment : Experiment
        Its privacy section.
    sizes : sequence of int
        Examples that each client trains on.

    Raises
    ------
    InputError
        If the sizes are not known here, no noise is enough, or its budget allows no round.
    """
    spec = experiment.privacy
    if spec.mode != "example":
        return None
    if not any(sizes):
        raise InputError(
            "privacy.mode is 'example', but the numbers of the sites' examples are not known here; "
            "set 'central' or 'local'"
        )
    rounds = experiment.strategy.rounds
    noise = spec.noise_multiplier or _noise(experiment, sizes, rounds)
    groups = example_mechanisms(experiment, sizes, noise)
    ledger = ExampleLedger(
        noise=noise,
        mechanism=groups[-1][0],
        delta=spec.delta,
        accountant=spec.accountant,
        budget=spec.budget_epsilon,
        update_noise=noise,
        mechanisms=tuple(groups),
    )
    if ledger.exceeds(1):
        raise InputError(
            f"privacy.budget-epsilon is {spec.budget_epsilon:g}, but one round spends "
            f"{ledger.epsilon(1):.3g}; raise it, or set more noise"
        )
    return ledger


def noisy_of(experiment: Experiment, sizes: Sequence[int]) -> Noisy | None:
    """How an experiment's clients clip and what they add; None without DP-SGD. Raises `InputError`."""
    ledger = example_ledger(experiment, sizes)
    return None if ledger is None else Noisy(experiment.privacy.clip, ledger.noise)


def example_notes(experiment: Experiment, sizes: Sequence[int]) -> list[str]:
    """Lines for people on an experiment with DP-SGD; none for others. Raises `InputError`."""
    if (ledger := example_ledger(experiment, sizes)) is None:
        return []
    rounds, rates = experiment.strategy.rounds, [own.rate for own, _ in ledger.mechanisms]
    between = f"{min(rates):.4g}" if len(rates) == 1 else f"{min(rates):.4g} to {max(rates):.4g}"
    lines = [
        f"privacy: each example is hidden from all who see a client's update: epsilon "
        f"{ledger.epsilon(rounds):.4g} at delta {ledger.delta:g} after {rounds} rounds (noise multiplier "
        f"{ledger.noise:.4g}, each example in a step with probability {between}; neighbours differ by "
        f"one example; accountant {ledger.accountant})"
    ]
    if is_reproducible(experiment):
        lines.append(
            "privacy: all that is drawn follows the run's seed: no guarantee against those who know it; "
            "on a network it follows the system's entropy"
        )
    if ledger.delta >= 1 / max(sizes):
        lines.append(
            f"privacy.delta is {ledger.delta:g}, which is not less than 1 / {max(sizes):,} examples: such a "
            f"guarantee may give one of them away; set less than {1 / max(sizes):.1g}"
        )
    return lines


def _noise(experiment: Experiment, sizes: Sequence[int], rounds: int) -> float:
    """The smallest noise multiplier with which no client spends more than epsilon."""
    spec, noise = experiment.privacy, 0.0
    while True:
        groups = example_mechanisms(experiment, sizes, noise or 1.0)
        counted = [(own, steps * rounds) for own, steps in groups]
        epsilon, worst = worst_of(counted, spec.delta, spec.accountant)
        if noise and epsilon <= spec.epsilon:
            return noise
        (_, rate), steps = groups[worst]
        try:
            found = noise_for(spec.epsilon, rate, steps * rounds, spec.delta, spec.accountant)
        except ValueError as error:
            raise InputError(
                f"privacy.epsilon is {spec.epsilon:g}: {error} for {steps * rounds:,} steps; raise it, "
                f"or set fewer rounds"
            ) from None
        noise = max(found, math.nextafter(noise, math.inf))


def _worst(mechanisms: Sequence[tuple[Mechanism, int]], times: int, ledger: Ledger) -> float:
    counted = [(own, steps * times) for own, steps in mechanisms]
    return worst_of(counted, ledger.delta, ledger.accountant)[0]
