"""Differential privacy of clients, as the server keeps it round by round.

`central`: each round's cohort is a Poisson sample, the sum of the clipped updates is divided by the size
that cohorts have on average, and noise is added to it; the strategy takes its step with the result as
if one client had sent it. `local`: the clients add the noise, and the server only counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy

from flsimulation.experiment import Experiment
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.privacy import adaptive, transforms
from flsimulation.privacy.clients import CLIP, WHOLE
from flsimulation.privacy.draws import Draws
from flsimulation.privacy.examples import example_ledger
from flsimulation.privacy.ledger import Ledger, ledger_of, sampling_rate
from flsimulation.privacy.sources import generator, is_reproducible
from flsimulation.server.grid import PartitionedGrid
from flsimulation.server.replies import Replies
from flsimulation.server.sampling import OfferedNodes

_NORM = "clip_norm"  # attribute of the strategy, which a checkpoint stores
_UNFINISHED = 2
"""Rounds in which a client may have trained since the last complete one: an evaluation comes with a training."""


def spending_of(
    experiment: Experiment,
    names: Mapping[str, str],
    strategy: Strategy,
    trained: Iterable[tuple[int, str | None]] = (),
    sizes: Sequence[int] = (),
    resumes: int = 0,
) -> Spending | None:
    """What hides an experiment's clients; None if nothing does.

    Parameters
    ----------
    experiment : Experiment
        Its privacy section.
    names : mapping
        What an update consists of, as of `transforms.updated`.
    strategy : Strategy
        It keeps the clipping norm, so that a checkpoint does.
    trained : iterable of (int, str or None)
        Partition and reason of the failure of each training before this run was resumed.
    sizes : sequence of int
        Examples that each client trains on.
    resumes : int
        How often the run was resumed.

    Raises
    ------
    InputError
        If there is no such noise.
    """
    ledger = example_ledger(experiment, sizes) or ledger_of(experiment)
    if ledger is None:
        return None
    central = experiment.privacy.mode == "central"
    repeated = 0 if is_reproducible(experiment) else resumes * (1 if central else _UNFINISHED)
    if central:
        return Central(experiment, ledger, names, strategy, repeated)
    return Spending(experiment, ledger, trained, repeated)


class Spending:
    """Counts what a run spends: the whole of `local` and `example`, and a part of `central`.

    Parameters
    ----------
    experiment : Experiment
        Its privacy section.
    ledger : Ledger
        Of the experiment.
    trained : iterable of (int, str or None)
        Partition and reason of the failure of each training before this run was resumed.
    repeated : int
        Rounds that may have been in progress when the run was interrupted, and were repeated with other
        noise: what was sent in them was spent, too.
    """

    def __init__(
        self,
        experiment: Experiment,
        ledger: Ledger,
        trained: Iterable[tuple[int, str | None]] = (),
        repeated: int = 0,
    ) -> None:
        self.experiment, self.ledger, self.repeated = experiment, ledger, repeated
        self._counts = Counter(partition for partition, _ in trained)

    def times(self, number: int) -> int:  # noqa: ARG002 - central counts rounds
        """How often the mechanism was applied up to a round, to the client that is worst off."""
        return max(self._counts.values(), default=0) + self.repeated

    @property
    def note(self) -> str:
        """A line for people on what was counted twice; mostly empty."""
        if not self.repeated:
            return ""
        rounds = "1 round" if self.repeated == 1 else f"{self.repeated} rounds"
        last = self.experiment.strategy.rounds
        return (
            f"privacy: what was sent before the run was interrupted had other noise, so that {rounds} more "
            f"may have been spent, and {'is' if self.repeated == 1 else 'are'} counted: epsilon "
            f"{self.ledger.epsilon(last + self.repeated):.4g} after {last} rounds"
        )

    def why_over(self, number: int) -> str | None:
        """Why a round must not be trained; None if the budget allows it."""
        times = self.times(number - 1) + 1
        if not self.ledger.exceeds(times):
            return None
        return (
            f"privacy.budget-epsilon is {self.ledger.budget:g}: epsilon would be "
            f"{self.ledger.epsilon(times):.4g} after round {number}; the run ends before it"
        )

    def settings(self) -> ConfigRecord:
        """What is sent with each training."""
        return ConfigRecord()

    def grid(self, grid: PartitionedGrid, round: int) -> Any:  # noqa: ARG002 - central samples
        """The grid from which the strategy samples a round's cohort, if not as without privacy."""
        return None

    def spend(self, trained: Replies) -> dict[str, float]:
        """Count a round's trainings; its line of what the run has spent.

        Trainings that failed count: their updates may have been sent.
        """
        self._counts.update(trained.cohort)
        clip = self.experiment.privacy.clip
        return self._line(trained.round, clip, self.ledger.noise * clip)

    def _line(self, number: int, clip: float, noise: float) -> dict[str, float]:
        epsilon = self.ledger.epsilon(self.times(number))
        return {"epsilon": epsilon, "delta": self.ledger.delta, "clip": clip, "noise": noise}


class Central(Spending):
    """Samples cohorts, and makes a noisy mean of their updates.

    Parameters
    ----------
    experiment, ledger
        As of `Spending`.
    names : mapping
        What an update consists of, as of `transforms.updated`.
    strategy : Strategy
        It keeps the clipping norm, so that a checkpoint does.
    repeated : int
        As of `Spending`.
    """

    def __init__(
        self,
        experiment: Experiment,
        ledger: Ledger,
        names: Mapping[str, str],
        strategy: Strategy,
        repeated: int = 0,
    ) -> None:
        super().__init__(experiment, ledger, repeated=repeated)
        self.names, self._strategy = names, strategy
        if not hasattr(strategy, _NORM):
            setattr(strategy, _NORM, experiment.privacy.clip)
        self._used = 0.0, 0.0

    @property
    def _expected(self) -> float:
        """Clients of a round, on average."""
        return sampling_rate(self.experiment) * self.experiment.data.clients

    @property
    def _norm(self) -> float:
        return float(getattr(self._strategy, _NORM))

    def times(self, number: int) -> int:
        """The number of rounds: each client was in each of them with the same probability."""
        return number + self.repeated

    def settings(self) -> ConfigRecord:
        """The clipping norm of the round."""
        return ConfigRecord({CLIP: self._norm})

    def grid(self, grid: PartitionedGrid, round: int) -> OfferedNodes:
        """A grid with a Poisson sample of the experiment's clients, of which the strategy takes all.

        Clients that are not connected are in the sample and contribute nothing.
        """
        rate, clients = sampling_rate(self.experiment), self.experiment.data.clients

        def draw() -> list[int]:
            if rate == 1:
                return list(grid.get_node_ids())
            stream = generator(self.experiment, "cohort-poisson", round)
            drawn = np.flatnonzero(stream.random(clients) < rate)
            nodes = [grid.node_of(int(partition)) for partition in drawn]
            return [node for node in nodes if node is not None]

        return OfferedNodes(grid, draw)

    def mean(self, number: int, trained: Replies, before: ArrayRecord) -> ArrayRecord:
        """The global model moved by the noisy mean update.

        A client that failed contributes zero: the sum is divided by the clients of a round on
        average, not by those that replied.

        Parameters
        ----------
        number : int
            The round.
        trained : Replies
            The clients' results.
        before : ArrayRecord
            The model from which they trained.
        """
        norm, names = self._norm, self.names
        firsts = [name for name, first in names.items() if name == first]
        origin = {name: before[name].numpy() for name in firsts}
        sums = {name: np.zeros(value.shape, np.float64) for name, value in origin.items()}
        for _, part in sorted(trained.means.items()):
            for name in firsts:
                sums[name] += part.weight * (part.model[name].numpy() - origin[name])
        for _, model in sorted(trained.models.items()):
            for name, update in _clipped(model, origin, norm).items():
                sums[name] += update
        mean = {
            name: (origin[name] + total / self._expected).astype(origin[name].dtype)
            for name, total in sums.items()
        }
        deviation = self.ledger.update_noise * norm / self._expected
        noise = generator(self.experiment, "noise-server", number)
        noisy = transforms.server(mean, names, deviation, noise)
        self._used = norm, self.ledger.update_noise * norm
        self._follow(trained, noise)
        made = {name: HeldArray(np.asarray(value)) for name, value in noisy.items()}
        return joined({name: made.get(name, array) for name, array in before.items()})

    def _follow(self, trained: Replies, noise: Draws) -> None:
        """Have the clipping norm follow the quantile of the updates' norms."""
        if not self.ledger.count_noise:
            return
        spec = self.experiment.privacy
        whole = sum(own.get(WHOLE, 0.0) >= 0.5 for own in trained.metrics.values())
        drawn = self.ledger.count_noise * float(noise.standard_normal())
        clipped = len(trained.metrics) - whole
        share = adaptive.noisy_share(whole, clipped, self._expected, drawn)
        norm = adaptive.next_norm(self._norm, share, spec.clip_quantile, spec.clip_learning_rate)
        setattr(self._strategy, _NORM, norm)

    def spend(self, trained: Replies) -> dict[str, float]:
        """A round's line: the norm and the noise that its updates had."""
        return self._line(trained.round, *self._used)


def _clipped(
    model: ArrayRecord, origin: Mapping[str, np.ndarray], norm: float
) -> dict[str, np.ndarray]:
    """A single client's update, clipped here whether the client did so or not."""
    gaps = {name: model[name].numpy() - start for name, start in origin.items()}
    rows = {name: torch.from_numpy(np.asarray(gap))[None] for name, gap in gaps.items()}
    zeros = {name: torch.zeros_like(row[0]) for name, row in rows.items()}
    length = transforms.norms(rows, zeros, {name: name for name in rows})
    (kept,) = transforms.shares(length, norm).tolist()
    return {name: kept * gap.astype(np.float64) for name, gap in gaps.items()}
