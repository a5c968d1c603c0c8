"""Which examples each client takes in each step: a Poisson sample, each example by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flsimulation.data.leaves import Leaves, each, stacked
from flsimulation.errors import ClientError
from flsimulation.privacy.draws import Draws, seed_of
from flsimulation.training.batches import Batches, gathered
from flsimulation.training.private.dropout import dropped
from flsimulation.training.private.gradients import Examples
from flsimulation.training.stacked.compiler.draws import Draw

_SIZES = 8  # to which a batch may be filled up, between none and the expected size


class Samples:
    """The examples of a wave's clients, step by step.

    An epoch has as many steps as without privacy. In each, every example of a client is drawn with
    the probability with which it is in a batch on average, independently of all others.

    Parameters
    ----------
    data : pair of Tensor or dict of Tensor
        Inputs and labels of the data set, [n, ...].
    clients : sequence of Batches
        Their training parts, each with at least one example.
    epochs : int
        Local epochs.
    generators : sequence of Draws
        The clients' own.
    device : device
        Where batches shall be.
    draws : sequence of Draw
        What the step of one example draws from its client's generator.
    """

    def __init__(
        self,
        data: tuple[Leaves, Leaves],
        clients: Sequence[Batches],
        epochs: int,
        generators: Sequence[Draws],
        device: torch.device,
        draws: Sequence[Draw] = (),
    ) -> None:
        self._generators, self._draws = generators, draws
        self._data, self._clients, self._device = data, clients, device
        self.taken = np.array([len(client) * epochs for client in clients])
        """Steps of each client, int64 [clients]."""
        self.last_epoch = self.taken - np.array([len(client) for client in clients])
        """The first step of each client's last epoch, int64 [clients]."""
        self.expected = np.array([min(client.parts[1], client.examples) for client in clients])
        """Examples of a step on average, int64 [clients]."""
        self._rows = [
            [_drawn(client.parts[0], size, own) for _ in range(steps)]
            for client, size, own, steps in zip(
                clients, self.expected, generators, self.taken, strict=True
            )
        ]
        if clients[0].transform is not None:  # what it draws must be as secret as the samples
            self._clients = [
                client.seeded(seed_of(own)) for client, own in zip(clients, generators, strict=True)
            ]
        self._rounded = max(1, int(self.expected.max()) // _SIZES)
        self.failed: dict[int, ClientError] = {}
        """Clients whose transform failed, by their place."""

    def of(self, step: int) -> Examples:
        """What the clients take in a step; it is called once for each, in order. ``kept`` is 1 where an example was drawn.

        Smaller samples are filled up with the client's first example, which does not count.
        """
        drawn = [rows[step] if step < len(rows) else rows[0][:0] for rows in self._rows]
        most = max(1, *(len(rows) for rows in drawn))
        size = -(-most // self._rounded) * self._rounded
        kept = np.zeros((len(drawn), size), np.float32)
        filled = np.empty((len(drawn), size), np.int64)
        for place, rows in enumerate(drawn):
            kept[place, : len(rows)] = 1
            filled[place] = self._clients[place].parts[0][0]
            filled[place, : len(rows)] = rows
        if self._clients[0].transform is None:
            x, y = gathered(self._data, filled, self._device)
        else:
            pairs = [self._changed(place, rows, size) for place, rows in enumerate(drawn)]
            x, y = (
                each(lambda t: t.to(self._device), stacked([pair[part] for pair in pairs]))
                for part in (0, 1)
            )
        sizes = [
            max(1, len(rows)) for rows in drawn
        ]  # of an empty one the first example shows a loss
        draws = dropped(self._draws, self._generators, sizes, size, self._device)
        return Examples(x, y, torch.from_numpy(kept).to(self._device), draws)

    def _changed(self, place: int, rows: np.ndarray, size: int) -> tuple[Leaves, Leaves]:
        """A client's examples as its transform returns them, each by itself: none may see another."""
        client, zeros = self._clients[place], Batches(*self._data, rows, size).taken
        pairs = []
        try:
            if place not in self.failed:
                pairs = [client.taken(rows[i : i + 1]) for i in range(len(rows))]
        except ClientError as error:
            self.failed[place] = error
        if not pairs:
            first = self._clients[place].parts[0][:1]
            try:
                pairs = [client.taken(first)]
            except ClientError as error:
                self.failed[place] = error
                pairs = [zeros(first)]
        pairs += pairs[:1] * (size - len(pairs))
        x, y = (stacked([pair[part] for pair in pairs]) for part in (0, 1))
        return each(lambda t: t[:, 0], x), each(lambda t: t[:, 0], y)


def _drawn(indices: np.ndarray, expected: int, own: Draws) -> np.ndarray:
    if expected == len(indices):
        return indices
    uniform: np.ndarray = own.random(len(indices))
    return indices[uniform < expected / len(indices)]
