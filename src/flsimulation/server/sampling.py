"""Cohorts of very large populations, sampled without listing all clients.

Flower's strategies list every node twice per round and sample from the list. With a million clients
that takes longer than the training, so above `LISTED_CLIENTS` the cohort is sampled here, and the
strategy sees a grid of these nodes only, of which it takes all (docs/decisions/0014).
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
"""Size of the largest population from which strategies sample themselves."""


class OfferedNodes:
    """A grid with only some of another grid's nodes.

    Parameters
    ----------
    grid : PartitionedGrid
        Used for everything else.
    draw : callable
        Returns the nodes; called once, at first use.
    """

    def __init__(self, grid: PartitionedGrid, draw: Callable[[], list[int]]) -> None:
        self._grid, self._draw = grid, functools.cache(draw)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are offered."""
        return self._draw()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


def offered(grid: PartitionedGrid, experiment: Experiment, phase: Phase, round: int) -> Any:
    """The grid that a strategy samples a phase's cohort from: all nodes, or a cohort sampled here.

    Parameters
    ----------
    grid : PartitionedGrid
        The grid with all nodes.
    experiment : Experiment
        Its population and fractions determine the cohort.
    phase : {"train", "evaluate"}
        The phase of the cohort.
    round : int
        Each round and phase has its own random stream.
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
