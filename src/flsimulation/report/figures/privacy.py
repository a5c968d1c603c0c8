"""Epsilon by round, drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flsimulation.report.figures.canvas import (
    BLUE,
    VERMILION,
    blank,
    house_style,
    legend_above,
    number_axis,
    round_axis,
)
from flsimulation.report.scores import curve
from flsimulation.rundir import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flsimulation.rundir import RunRecord


@house_style()
def epsilon_figure(run: RunRecord) -> Figure | None:
    """Epsilon by round, and the budget if there is one; None where nobody is hidden."""
    turns, values = curve(run, "privacy", "epsilon")
    if not any(map(math.isfinite, values)):
        return None
    figure, axes = blank("Privacy spent", "Round", "Epsilon")
    marker = "o" if len(turns) <= 30 else ""
    axes.plot(turns, values, "-", color=BLUE, marker=marker, markersize=4.5, label="epsilon")
    if budget := number(run.settings, "privacy", "budget-epsilon"):
        axes.axhline(budget, color=VERMILION, linestyle="--", label="budget")
    axes.set_ylim(bottom=0)
    round_axis(axes, turns)
    legend_above(figure, axes)
    number_axis(axes.yaxis)
    return figure
