"""What an experiment's rounds spend of its privacy."""

from __future__ import annotations

from dataclasses import dataclass

from flsimulation.errors import InputError
from flsimulation.experiment import Experiment
from flsimulation.privacy.accountant import (
    Mechanism,
    Method,
    epsilon_of,
    noise_for,
    times_within,
)

_REPLACED = 2  # norms by which an update may change if a client's data is replaced


@dataclass(frozen=True)
class Ledger:
    """The noise of an experiment, and the epsilon of any number of its rounds.

    It has no state: epsilon is a function of how often a client's update may have been used. Neighbours
    differ in `central` by one client, whose update adds at most the clipping norm to a sum; in `local` by
    all data of a client, who sends an update of that norm in any case, so that it may change by two norms.
    """

    noise: float
    """Standard deviation of the noise, divided by the clipping norm."""
    mechanism: Mechanism
    """As the accountant counts it."""
    delta: float
    accountant: Method
    budget: float
    """Largest epsilon; 0 for no limit."""

    def epsilon(self, times: int) -> float:
        """Epsilon after so many rounds (`central`) or so many updates of one client (`local`)."""
        return epsilon_of(self.mechanism, times, self.delta, self.accountant)

    def exceeds(self, times: int) -> bool:
        """Whether so many are more than the budget allows."""
        return self.budget > 0 and self.epsilon(times) > self.budget

    def permitted(self, most: int) -> int:
        """How many of at most so many the budget allows."""
        if self.budget == 0:
            return most
        return times_within(self.mechanism, self.budget, self.delta, most, self.accountant)


def ledger_of(experiment: Experiment) -> Ledger | None:
    """The ledger of an experiment whose clients are hidden; None for all others.

    Raises
    ------
    InputError
        If no noise is enough for its epsilon, or its budget allows no round.
    """
    spec = experiment.privacy
    if spec.mode not in ("central", "local"):
        return None
    central = spec.mode == "central"
    rate = sampling_rate(experiment) if central else 1.0
    change = 1 if central else _REPLACED
    rounds, noise = experiment.strategy.rounds, spec.noise_multiplier
    if not noise:
        try:
            noise = change * noise_for(spec.epsilon, rate, rounds, spec.delta, spec.accountant)
        except ValueError as error:
            raise InputError(
                f"privacy.epsilon is {spec.epsilon:g}: {error} for {rounds} rounds; raise it, or set "
                f"fewer rounds"
            ) from None
    mechanism = Mechanism(noise / change, rate)
    ledger = Ledger(noise, mechanism, spec.delta, spec.accountant, spec.budget_epsilon)
    if ledger.exceeds(1):
        raise InputError(
            f"privacy.budget-epsilon is {spec.budget_epsilon:g}, but one round spends "
            f"{ledger.epsilon(1):.3g}; raise it, or set more noise"
        )
    return ledger


def with_noise(experiment: Experiment) -> Experiment:
    """The experiment with its noise multiplier in place of the epsilon from which it is computed.

    So it is the same whatever the number of rounds.
    """
    if (ledger := ledger_of(experiment)) is None:
        return experiment
    update = {"noise_multiplier": ledger.noise, "epsilon": 0.0}
    return experiment.model_copy(update={"privacy": experiment.privacy.model_copy(update=update)})


def sampling_rate(experiment: Experiment) -> float:
    """Probability with which a client is in a round's cohort."""
    return experiment.cohort_size / experiment.data.clients
