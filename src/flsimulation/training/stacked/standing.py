"""Where the tensors of a wave stay from one wave to the next, so that graphs of its steps find them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from flsimulation.training.memory import free_unused, is_out_of_memory
from flsimulation.training.stacked.compiler.draws import Draw
from flsimulation.training.stacked.compiler.given import Step
from flsimulation.training.stacked.graphs import (
    Recorder,
    Work,
    recorded,
    recorder_on,
    tell,
)
from flsimulation.training.stacked.room import Room

Done = TypeVar("Done")

_KEPT = 2  # forms of a wave: the full ones of a round and its last
_SIZES = 3  # of a batch: that of most batches, and the last ones of an epoch
_WORTH = 12  # steps of a size: recording one takes as long as about eight
_CLONES = 4  # of what a step changes, while a graph is compared


@dataclass(frozen=True)
class Inputs:
    """What a graph's step is taken from, filled before each, and where it leaves its values."""

    rows: Tensor
    """Indices of the examples, int64 [clients * examples]."""
    facts: list[Tensor]
    draws: list[Tensor]
    values: Tensor
    """Losses, then what was logged: float64 [1 + logged, clients]."""

    @classmethod
    def made(
        cls, rows: Tensor, facts: int, draws: Sequence[Draw], logged: int, clients: int
    ) -> Inputs:
        """New ones for a step of these rows."""
        device = rows.device
        return cls(
            rows.clone(),
            [torch.zeros((), dtype=torch.int64, device=device) for _ in range(facts)],
            [torch.zeros(clients, *d.shape, dtype=d.dtype, device=device) for d in draws],
            torch.zeros(1 + logged, clients, dtype=torch.float64, device=device),
        )


class Standing:
    """Tensors of the waves of one form, and the graphs that work on them."""

    def __init__(self) -> None:
        self._held: dict[str, list[Tensor]] = {}
        self.graphs: dict[int, tuple[Inputs, Work]] = {}
        """By examples of a batch."""

    def placed(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors' numbers at their places: those of the first tensors under this name."""
        held = self._held.setdefault(name, list(tensors))
        for own, tensor in zip(held, tensors, strict=True):
            if own is not tensor:
                own.copy_(tensor)
        return list(held)

    def zeroed(self, prefix: str) -> dict[str, Tensor]:
        """Single tensors whose names begin so, by the rest of their names, with zeros in them."""
        return {
            name.removeprefix(prefix): own[0].zero_()
            for name, own in self._held.items()
            if name.startswith(prefix)
        }

    def add(self, examples: int, inputs: Inputs, graph: Work) -> None:
        """Keep a graph; the oldest of too many is dropped."""
        while len(self.graphs) >= _SIZES:
            del self.graphs[next(iter(self.graphs))]
        self.graphs[examples] = inputs, graph


class Graphs:
    """The graphs of a trainer's waves, for as long as they are worth their memory.

    Parameters
    ----------
    recorder : Recorder
        Of the device.
    rates_move : bool
        Whether learning rates change from one round to the next.
    """

    def __init__(self, recorder: Recorder, *, rates_move: bool = False) -> None:
        self.recorder, self.rates_move = recorder, rates_move
        self.room = Room(0)
        """What a step takes."""
        self._standing: dict[Hashable, Standing] = {}
        self._steps = Counter[Hashable]()  # so far, by form and examples of a batch
        self.apart: Callable[..., Step] | None = None
        """Each client's step by itself, where that is faster than one of all."""
        self.why_not: str | None = None
        """Why no more graphs are recorded."""

    def standing(self, form: Hashable) -> Standing:
        """Where waves of this form stay; those of the least recent of too many are dropped."""
        found = self._standing.pop(form, None) or Standing()
        while len(self._standing) >= _KEPT:
            del self._standing[next(iter(self._standing))]
        self._standing[form] = found
        return found

    def known(self, form: Hashable) -> Standing | None:
        """Where waves of this form stay, if there were any."""
        return self._standing.get(form)

    def is_worth(self, form: Hashable, examples: int, steps: int) -> bool:
        """Whether a graph for this size is there, or steps enough have been taken to record one.

        Parameters
        ----------
        form : hashable
            Of the wave.
        examples : int
            Of a batch.
        steps : int
            Steps of this size in this wave.
        """
        self._steps[form, examples] += steps
        known = form in self._standing and examples in self._standing[form].graphs
        return known or self._steps[form, examples] >= _WORTH

    def record(self, work: Work, state: Sequence[Tensor], clients: int) -> Work | None:
        """A graph of the work; without one, the other way of a step is tried, and then no other.

        Parameters
        ----------
        work : callable
            A step.
        state : sequence of Tensor
            All that it changes.
        clients : int
            That take it.
        """
        size = self.room.fixed + clients * self.room.each
        if not self.recorder.has_room(size + _CLONES * sum(tensor.nbytes for tensor in state)):
            self.stop("a graph would take more than half of the memory that is free")
            return None
        found = recorded(self.recorder, work, state)
        if not isinstance(found, str):
            return found
        if self.apart is None:
            self.stop(found)
        else:
            self.apart = None
            tell(f"clients' steps are not taken side by side on the GPU after all: {found}")
        return None

    def stop(self, reason: str) -> None:
        """Drop all graphs and record no more."""
        if self.why_not is None:
            self.why_not = reason
            tell(f"the GPU's steps are not repeated as CUDA graphs, which takes longer: {reason}")
        self._standing.clear()

    def beside(self, work: Callable[[], Done]) -> Done:
        """What the work returns; done once more without graphs if memory is too small beside them."""
        try:
            return work()
        except Exception as error:
            if not self._standing or not is_out_of_memory(error):
                raise
        self.stop("its memory does not hold them (lower train.batch-size)")
        free_unused()  # not in the handler, where the error still holds its frames
        return work()


def graphs_on(device: torch.device, *, rates_move: bool) -> Graphs | None:
    """Graphs of a trainer's waves on a device; None on a CPU."""
    recorder = recorder_on(device)
    return None if recorder is None else Graphs(recorder, rates_move=rates_move)
