"""Cohorts of very large populations, drawn without listing all clients.

Flower's strategies list every node twice a round and draw from the list. With a million clients
that takes longer than the training, so above `LISTED_CLIENTS` the cohort is drawn here and a
strategy is offered these nodes only, of which it takes all (docs/decisions/0014).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from flsimulation import seeds
from flsimulation.events import Phase
from flsimulation.experiment import Experiment
from flsimulation.server.grid import PartitionedGrid

LISTED_CLIENTS = 10_000
"""Most clients of a population that strategies draw from themselves."""


class OfferedNodes:
    """A grid that has some of another's nodes only.

    Parameters
    ----------
    grid : PartitionedGrid
        Does everything else.
    draw : callable
        Gives those that are there; called once, when first asked.
    """

    def __init__(self, grid: PartitionedGrid, draw: Callable[[], list[int]]) -> None:
        self._grid, self._draw = grid, functools.cache(draw)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are offered."""
        return self._draw()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


def offered(grid: PartitionedGrid, experiment: Experiment, phase: Phase, round: int) -> Any:
    """The grid that a strategy draws a phase's cohort from: all of it, or the cohort drawn here.

    Parameters
    ----------
    grid : PartitionedGrid
        With all nodes.
    experiment : Experiment
        Its population and fractions decide.
    phase : {"train", "evaluate"}
        What the cohort is for.
    round : int
        Each round of each phase has a draw of its own.
    """
    clients = len(grid.partitions)
    if clients <= LISTED_CLIENTS:
        return grid

    def draw() -> list[int]:
        wanted = experiment.cohort_size if phase == "train" else experiment.evaluated_size
        stream = seeds.rng(experiment.seed, f"cohort-{phase}", round)
        drawn = stream.choice(experiment.data.clients, min(wanted, clients), replace=False)
        nodes = [grid.node_of(int(partition)) for partition in drawn]
        return [node for node in nodes if node is not None]

    return OfferedNodes(grid, draw)
