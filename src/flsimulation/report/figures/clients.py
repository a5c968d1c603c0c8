"""How well the newest model serves each client, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flsimulation.report.figures.canvas import (
    BLUE,
    INK,
    VERMILION,
    blank,
    house_style,
    legend_above,
    share_axis,
)
from flsimulation.report.formats import is_share
from flsimulation.report.scores import Spread, client_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flsimulation.rundir import RunRecord

MANY = 60
"""Up to this number of clients have a bar each; more are drawn as a distribution."""


@house_style()
def clients_figure(run: RunRecord) -> Figure | None:
    """Draw the newest accuracy (else loss) of each client, or of many their distribution."""
    spread = client_spread(run)
    if spread is None:
        return None
    names = [run.site_names[p] if run.site_names else str(p) for p, _ in spread.ranked]
    return _bars(spread, names) if len(spread.ranked) <= MANY else _distribution(spread)


def _bars(spread: Spread, names: list[str]) -> Figure:
    name = spread.metric
    figure, axes = blank(
        f"{name.capitalize()} of each client", "Client, worst first", name.capitalize()
    )
    places = np.arange(len(spread.ranked))
    axes.bar(places, spread.values, width=min(0.8, 0.25 + 0.05 * len(places)), color=BLUE)
    axes.set_xlim(-0.6, len(places) - 0.4)
    _name_clients(axes, names)
    _averages(figure, axes, spread, upright=False)
    if is_share(name):
        share_axis(axes.yaxis)
        axes.set_ylim(0, 1)
    return figure


def _name_clients(axes: Axes, names: list[str]) -> None:
    if sum(len(name) + 1 for name in names) <= 56:
        axes.set_xticks(range(len(names)), names)
    else:  # they would run into each other
        axes.set_xticks([])


def _distribution(spread: Spread) -> Figure:
    from matplotlib.ticker import MaxNLocator

    name = spread.metric
    figure, axes = blank(f"{name.capitalize()} of the clients", name.capitalize(), "Clients")
    counts, edges = np.histogram(spread.values, bins=20)
    axes.stairs(counts, edges, fill=True, color=BLUE)
    _averages(figure, axes, spread, upright=True)
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    if is_share(name):
        share_axis(axes.xaxis)
    return figure


def _averages(figure: Figure, axes: Axes, spread: Spread, upright: bool) -> None:
    draw = axes.axvline if upright else axes.axhline
    draw(spread.mean, color=INK, linewidth=1.2, linestyle="--", label="mean")
    draw(spread.worst_tenth, color=VERMILION, linewidth=1.6, linestyle=":", label="worst tenth")
    legend_above(figure, axes)
