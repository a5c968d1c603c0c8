"""The figures of a run: matplotlib objects that know nothing of files or pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flsimulation.report.figures.clients import clients_figure
from flsimulation.report.figures.curves import accuracy_figure, loss_figure, metric_figure
from flsimulation.report.figures.inverted import inverted_figure
from flsimulation.report.figures.partition import partition_figure
from flsimulation.report.figures.privacy import epsilon_figure
from flsimulation.report.figures.stacks import failures_figure, times_figure
from flsimulation.rundir import RunRecord, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "accuracy_figure",
    "clients_figure",
    "epsilon_figure",
    "failures_figure",
    "figures",
    "inverted_figure",
    "loss_figure",
    "metric_figure",
    "partition_figure",
    "times_figure",
]


def figures(run: RunRecord) -> dict[str, Figure]:
    """All figures that the run has the numbers for, by name."""
    makers: dict[str, Callable[[RunRecord], Figure | None]] = {
        "accuracy": accuracy_figure,
        "metric": metric_figure,
        "loss": loss_figure,
        "partition": _partition,
        "clients": clients_figure,
        "times": times_figure,
        "failures": failures_figure,
        "epsilon": epsilon_figure,
        "inverted": inverted_figure,
    }
    made = {name: make(run) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def _partition(run: RunRecord) -> Figure | None:
    histogram = look(run.manifest, "data", "histogram")
    return (
        partition_figure(histogram, look(run.manifest, "data", "classes") or (), run.site_names)
        if histogram
        else None
    )
