"""What a run says of its privacy before it begins, and what of it cannot be useful."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from flsimulation.experiment import Experiment
from flsimulation.privacy.examples import example_ledger
from flsimulation.privacy.ledger import Ledger, ledger_of
from flsimulation.privacy.sources import is_reproducible
from flsimulation.privacy.transforms import updated

_NAMED = 3  # arrays in a line, at most
_LITTLE = 20  # a larger epsilon says little


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


def privacy_advice(
    experiment: Experiment, module: nn.Module, sizes: Sequence[int] = ()
) -> list[str]:
    """Lines for people on a guarantee that cannot be useful, or does not say much; mostly none.

    Parameters
    ----------
    experiment, module
        What is trained.
    sizes : sequence of int
        Examples that each client trains on, of an experiment with DP-SGD.
    """
    if (own := example_ledger(experiment, sizes)) is not None:
        return [*_large(experiment, own), *_of_steps(experiment, own, module, sizes)]
    if (ledger := ledger_of(experiment)) is None:
        return []
    found, clients = _large(experiment, ledger), experiment.data.clients
    if ledger.delta >= 1 / clients:
        found.append(
            f"privacy.delta is {ledger.delta:g}, which is not less than 1 / {clients:,} clients: such a "
            f"guarantee may give one of them away; set less than {1 / clients:.1g}"
        )
    numbers, noise = _numbers(module), ledger.update_noise
    length = noise * math.sqrt(numbers)
    cohort, central = experiment.cohort_size, experiment.privacy.mode == "central"
    ratio = length / (cohort if central else math.sqrt(cohort))
    if ratio > 1:
        enough = math.ceil(length if central else length**2)
        found.append(
            f"privacy: the noise on the mean update is {ratio:.3g} clipping norms long (noise multiplier "
            f"{noise:.3g}, {numbers:,} parameters, {cohort:,} clients a round): {_remedy(experiment, enough)}"
        )
    return found


def _of_steps(
    experiment: Experiment, ledger: Ledger, module: nn.Module, sizes: Sequence[int]
) -> list[str]:
    """A line where the noise of all steps drowns what they can learn.

    The clients' steps of a run move the model by a clipping norm each at most, in one direction; their noise adds up
    like a random walk. In the mean over a cohort a client weighs as many examples as it has.
    """
    numbers, noise = _numbers(module), ledger.update_noise
    moved, walked = 0.0, 0.0  # of a client in a round, on average
    for partition, size in enumerate(sizes):
        if size:
            spec = experiment.of_client(partition).train
            steps = spec.epochs * -(-size // spec.batch_size)
            moved += size * steps / len(sizes)
            walked += steps * (size / min(size, spec.batch_size)) ** 2 / len(sizes)
    cohort, rounds = experiment.cohort_size, experiment.strategy.rounds
    ratio = noise * math.sqrt(numbers * walked / (cohort * rounds)) / moved
    if ratio <= 1:
        return []
    enough = math.ceil(cohort * ratio**2)
    return [
        f"privacy: the noise of all steps is {ratio:.3g} times as long as their clipped gradients can be together "
        f"(noise multiplier {noise:.3g}, {numbers:,} parameters, {cohort:,} clients a round, {rounds} rounds): "
        f"{_remedy(experiment, enough)}"
    ]


def _remedy(experiment: Experiment, enough: int) -> str:
    share = experiment.cohort_size / experiment.data.clients
    of = f" of {math.ceil(enough / share):,} clients" if share < 1 else ""
    return f"the model will hardly learn; a cohort of {enough:,}{of} would do, or a smaller model"


def _large(experiment: Experiment, ledger: Ledger) -> list[str]:
    """A line on an epsilon that says little."""
    epsilon = ledger.epsilon(experiment.strategy.rounds)
    if ledger.budget > 0:
        epsilon = min(epsilon, ledger.budget)
    if epsilon <= _LITTLE:
        return []
    return [
        f"privacy: epsilon {epsilon:.3g} says little: 8 is common, and above {_LITTLE} an attack may succeed almost as "
        f"often as without noise; set more noise, fewer rounds, or privacy.epsilon"
    ]


def _numbers(module: nn.Module) -> int:
    """Numbers in an update."""
    names, state = updated(module), module.state_dict()
    return sum(state[name].numel() for name, first in names.items() if name == first)


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
        f"privacy: {', '.join(left[:_NAMED])}{more} {'stays' if len(left) == 1 else 'stay'} as in the first model: only trained parameters "
        f"are clipped and sent on"
    )
