"""Which examples each client of a wave takes in each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from flsimulation.training.batches import Batches
from flsimulation.training.work import Work


class Plan:
    """The batches of several clients, step by step.

    Parameters
    ----------
    clients : sequence of Batches
        Their training parts; each has its own order in each epoch.
    epochs : int
        Local epochs.
    """

    def __init__(self, clients: Sequence[Batches], epochs: int) -> None:
        self._batches = [
            [batch for _ in range(epochs) for batch in client.index_batches()] for client in clients
        ]
        self._per_epoch = [len(client) for client in clients]
        self.lasts = np.array([len(batches) for batches in self._batches])
        """Steps of each client, int64 [clients]."""
        self.steps = int(self.lasts.max(initial=0))
        """Steps of the client that has most."""
        self.last_epoch = np.zeros((self.steps, len(clients)))
        """Examples of each batch of a client's last epoch, 0 in others, [steps, clients]."""
        for place, batches in enumerate(self._batches):
            for step in range(len(batches) - self._per_epoch[place], len(batches)):
                self.last_epoch[step, place] = len(batches[step])

    def runs(self, step: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Neighbouring clients whose batches are of one size, in one step.

        Yields
        ------
        first, last : int
            The clients ``first`` to ``last - 1``.
        rows : int64 [clients, examples]
            Indices of their batches' examples.
        """
        sizes = [len(batches[step]) if step < len(batches) else 0 for batches in self._batches]
        first = 0
        for place in range(1, len(sizes) + 1):
            if place == len(sizes) or sizes[place] != sizes[first]:
                if sizes[first]:
                    yield first, place, np.stack([b[step] for b in self._batches[first:place]])
                first = place

    def rare(self, work: Work | None, waves: int = 1) -> frozenset[tuple[int, int]]:
        """Clients and examples of which so few steps are taken that no program is worth it.

        Parameters
        ----------
        work : Work, optional
            What all clients do; without it nothing is rare.
        waves : int
            Waves of a round, which are taken to be like this one.
        """
        if work is None:
            return frozenset()
        counts = self._sizes().items()
        return frozenset(
            size for size, steps in counts if not work.is_worth_a_program(steps * waves)
        )

    def _sizes(self) -> dict[tuple[int, int], int]:
        """Number of steps by clients and examples, as `runs` has them."""
        examples = np.zeros((self.steps, len(self._batches)), np.int64)
        for place, batches in enumerate(self._batches):
            examples[: len(batches), place] = [len(batch) for batch in batches]
        begins = np.ones(examples.shape, bool)
        begins[:, 1:] = examples[:, 1:] != examples[:, :-1]
        first = np.flatnonzero(begins)
        clients = np.diff(first, append=examples.size)
        pairs = np.stack([clients, examples.ravel()[first]], 1)
        found, counts = np.unique(pairs, axis=0, return_counts=True)
        return {
            (int(clients), int(size)): int(count)
            for (clients, size), count in zip(found, counts, strict=True)
            if size
        }

    def ending(self, step: int) -> list[int]:
        """Clients whose last step this is, while others have more."""
        if step == self.steps - 1:
            return []
        return np.flatnonzero(self.lasts == step + 1).tolist()

    def place_in_epoch(self, step: int) -> tuple[int, int]:
        """Number of the batch in its epoch, and of the epoch if the step ends one, else 0.

        Only where all clients have as many batches.
        """
        size = self._per_epoch[0]
        batch = step % size + 1
        return batch, (step + 1) // size if batch == size else 0
