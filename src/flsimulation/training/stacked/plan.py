"""Which examples each client of a wave takes in each turn: in each step, unless gradients are added up."""

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
    accumulate : int
        Batches for each step of the optimizer; the rest of an epoch has a step, too. The clients'
        optimizer steps are aligned: who has fewer batches for one has none in its last turns.
    """

    def __init__(self, clients: Sequence[Batches], epochs: int, accumulate: int = 1) -> None:
        self._per_epoch = [len(client) for client in clients]
        self._epochs, self._accumulate = epochs, accumulate
        parts = [
            [part for _ in range(epochs) for part in _parts(client.index_batches(), accumulate)]
            for client in clients
        ]
        self.taken = np.array([len(own) for own in parts])
        """Optimizer steps of each client, int64 [clients]."""
        most = int(self.taken.max(initial=0))
        turns = [max(len(own[i]) for own in parts if len(own) > i) for i in range(most)]
        self._ends = np.cumsum([0, *turns])
        self._batches = [
            [
                batch
                for part, length in zip(own, turns, strict=False)
                for batch in _filled(part, length)
            ]
            for own in parts
        ]
        self.lasts = self._ends[self.taken]
        """Turns until the last optimizer step of each client is taken, int64 [clients]."""
        self.batches = self._per_epoch[0]
        """Batches in an epoch of the first client."""
        self.steps = int(self._ends[-1])
        """Turns of the client that has most."""
        self.last_epoch = self._of_last_epoch(epochs)
        """Examples of each batch of a client's last epoch, 0 in others, [turns, clients]."""

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

    def whole(self) -> dict[int, np.ndarray]:
        """Rows of the turns in which all clients have a batch of one size, [clients, examples]."""
        clients = len(self._batches)
        found: dict[int, np.ndarray] = {}
        for step in range(self.steps):
            for first, last, rows in self.runs(step):
                if (first, last) == (0, clients):
                    found[step] = rows
        return found

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

    def moves(self, step: int) -> bool:
        """Whether the optimizer takes a step after this turn."""
        return step + 1 in self._ends

    def facts(self, step: int) -> dict[str, int]:
        """What a Trainer knows of the fit in this turn; some only where all clients have as many
        batches.
        """
        size, epochs = self._per_epoch[0], self._epochs
        return {
            "batch_idx": step % size,
            "global_step": int(np.searchsorted(self._ends, step, "right")) - 1,
            "current_epoch": step // size,
            "num_training_batches": size,
            "estimated_stepping_batches": -(-size // self._accumulate) * epochs,
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

    def _of_last_epoch(self, epochs: int) -> np.ndarray:
        sizes = np.zeros((self.steps, len(self._batches)))
        for place, batches in enumerate(self._batches):
            begin = self._ends[self.taken[place] - self.taken[place] // epochs]
            sizes[begin : len(batches), place] = [len(batch) for batch in batches[begin:]]
        return sizes


def _parts(batches: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """An epoch's batches by the steps of the optimizer that they are for."""
    return [batches[i : i + size] for i in range(0, len(batches), size)]


def _filled(batches: list[np.ndarray], length: int) -> list[np.ndarray]:
    """The batches, and empty ones after them."""
    return [*batches, *([np.empty(0, np.int64)] * (length - len(batches)))]
