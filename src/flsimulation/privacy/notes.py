"""What a run says of its privacy before it begins, and what of it cannot be useful."""

from __future__ import annotations

import math

from torch import nn

from flsimulation.experiment import Experiment
from flsimulation.privacy.ledger import Ledger, ledger_of
from flsimulation.privacy.sources import is_reproducible
from flsimulation.privacy.transforms import updated

_NAMED = 3  # arrays in a line, at most


def privacy_notes(experiment: Experiment, module: nn.Module) -> list[str]:
    """Lines for people on an experiment that hides its clients; none for others.

    Raises
    ------
    InputError
        As of `ledger_of`.
    """
    if (ledger := ledger_of(experiment)) is None:
        return []
    lines = [_guarantee(experiment, ledger), _noise(experiment)]
    if left := _left_out(module):
        lines.append(left)
    if experiment.data.partition == "drawn":
        lines.append(
            "privacy: clients of data.partition = 'drawn' share examples: a client is hidden, an example "
            "that several clients have is not"
        )
    return lines


def privacy_advice(experiment: Experiment, module: nn.Module) -> list[str]:
    """Lines for people on a guarantee that cannot be useful, or does not say much; mostly none."""
    if (ledger := ledger_of(experiment)) is None:
        return []
    found, clients = list[str](), experiment.data.clients
    if ledger.delta >= 1 / clients:
        found.append(
            f"privacy.delta is {ledger.delta:g}, which is not less than 1 / {clients:,} clients: such a "
            f"guarantee may give one of them away; set less than {1 / clients:.1g}"
        )
    names, state = updated(module), module.state_dict()
    numbers = sum(state[name].numel() for name, first in names.items() if name == first)
    length = ledger.noise * math.sqrt(numbers)
    cohort, central = experiment.cohort_size, experiment.privacy.mode == "central"
    ratio = length / (cohort if central else math.sqrt(cohort))
    if ratio > 1:
        enough = math.ceil(length if central else length**2)
        share = cohort / clients
        of = f" of {math.ceil(enough / share):,} clients" if share < 1 else ""
        found.append(
            f"privacy: the noise on the mean update is {ratio:.3g} clipping norms long (noise multiplier "
            f"{ledger.noise:.3g}, {numbers:,} parameters, {cohort:,} clients a round): "
            f"the model will hardly learn; a cohort of {enough:,}{of} would do, or a smaller model"
        )
    return found


def _guarantee(experiment: Experiment, ledger: Ledger) -> str:
    rounds, delta = experiment.strategy.rounds, ledger.delta
    noise, rate = ledger.noise, ledger.mechanism.rate
    whom = {
        "central": "each client is hidden from all who see the global models",
        "local": "each client's update is hidden from the server too",
    }[experiment.privacy.mode]
    central = experiment.privacy.mode == "central"
    neighbours = "one client" if central else "all data of one client"
    sample = f", each client in a round with probability {rate:.4g}" if rate < 1 else ""
    return (
        f"privacy: {whom}: epsilon {ledger.epsilon(rounds):.4g} at delta {delta:g} after {rounds} rounds "
        f"(noise multiplier {noise:.4g}{sample}; neighbours differ by {neighbours}; accountant "
        f"{ledger.accountant})"
    )


def _noise(experiment: Experiment) -> str:
    if is_reproducible(experiment):
        return (
            "privacy: noise and cohorts follow the run's seed: no guarantee against those who know it; on a "
            "network they follow the system's entropy"
        )
    return "privacy: noise and cohorts follow the system's entropy, not the run's seed"


def _left_out(module: nn.Module) -> str:
    left = [name for name in module.state_dict() if name not in updated(module)]
    if not left:
        return ""
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return (
        f"privacy: {', '.join(left[:_NAMED])}{more} stay as in the first model: only trained parameters "
        f"are clipped and sent on"
    )
