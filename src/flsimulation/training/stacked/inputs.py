"""Each step's batches of the clients of a wave, one tensor for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from flsimulation.data.leaves import Leaves, each, kinds, stacked
from flsimulation.errors import ClientError
from flsimulation.training.batches import Batches, gathered
from flsimulation.training.stacked.compiler.draws import draw_into, drawn
from flsimulation.training.stacked.compiler.program import StepPrograms
from flsimulation.training.stacked.compiler.step import NotStackable


class WaveInputs:
    """The batches of a wave's clients.

    Parameters
    ----------
    data : pair of Tensor or dict of Tensor
        Inputs and labels of the data set, [n, ...].
    like : pair of Tensor or dict of Tensor
        A batch as the programs were traced for, [examples, ...].
    clients : sequence of Batches
        The wave's.
    device : device
        Where the results shall be.
    """

    def __init__(
        self,
        data: tuple[Leaves, Leaves],
        like: tuple[Leaves, Leaves],
        clients: Sequence[Batches],
        device: torch.device,
    ) -> None:
        self._data, self._like, self._clients, self._device = data, like, clients, device
        self.failed: dict[int, ClientError] = {}
        """Clients whose transform failed, by their place in the wave."""

    def of(self, first: int, rows: np.ndarray) -> tuple[Leaves, Leaves]:
        """Inputs and labels of neighbouring clients, [clients, batch, ...].

        Parameters
        ----------
        first : int
            Place of the first client.
        rows : int64 [clients, batch]
            Indices of their examples.

        Raises
        ------
        NotStackable
            If a transform returns other shapes than before.
        """
        if self._clients[first].transform is None:
            x, y = gathered(self._data, rows, self._device)
            return x, y
        pairs = [self._taken(first + place, own) for place, own in enumerate(rows)]
        x, y = (stacked([pair[part] for pair in pairs]) for part in (0, 1))
        return each(self._there, x), each(self._there, y)

    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device)

    def _taken(self, place: int, rows: np.ndarray) -> tuple[Leaves, Leaves]:
        client = self._clients[place]
        if place not in self.failed:
            try:
                found = client.taken(rows)
            except ClientError as error:
                self.failed[place] = error
            else:
                self._require_alike(found, client)
                return found

        def zeros(like: torch.Tensor) -> torch.Tensor:
            return like.new_zeros(len(rows), *like.shape[1:], device="cpu")

        x, y = self._like  # any numbers will do: the client's result is the error
        return each(zeros, x), each(zeros, y)

    def _require_alike(self, found: tuple[Leaves, Leaves], client: Batches) -> None:
        for what, own, other in zip(("inputs", "labels"), found, self._like, strict=True):
            if kinds(own) != kinds(other):
                assert client.transform is not None  # noqa: S101 - only then they may differ
                raise NotStackable(
                    f"{client.transform.title} returned {what} of shape {kinds(other)} for one "
                    f"batch and {kinds(own)} for another"
                )


class WaveDraws:
    """What a wave's clients draw in their steps, each from a generator of its own.

    Parameters
    ----------
    programs : StepPrograms
        Of the step.
    seeds : sequence of callables
        Each returns the seed of a client's draws; called only if its step draws.
    device : device
        Where the results shall be.
    """

    def __init__(
        self, programs: StepPrograms, seeds: Sequence[Callable[[], int]], device: torch.device
    ) -> None:
        self._programs, self._seeds, self._device = programs, seeds, device
        self._made: list[torch.Generator] | None = None

    def of(self, first: int, last: int, examples: int) -> list[torch.Tensor]:
        """What neighbouring clients draw in their next step, [clients, ...] each."""
        draws = self._programs.draws(examples)
        return drawn(draws, self._generators[first:last], self._device) if draws else []

    def into(self, found: Sequence[torch.Tensor], examples: int) -> None:
        """Draw all clients' next step into tensors that are there."""
        if found:
            draw_into(self._programs.draws(examples), self._generators, found)

    @property
    def _generators(self) -> list[torch.Generator]:
        if self._made is None:
            self._made = [torch.Generator(self._device).manual_seed(own()) for own in self._seeds]
        return self._made
