"""Loss and accuracy by round, drawn."""

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
    share_axis,
)
from flsimulation.report.formats import is_share
from flsimulation.report.scores import curve, own_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flsimulation.rundir import RunRecord

_SOURCES = {"central": (BLUE, "o", "-"), "federated": (VERMILION, "s", "--")}


def accuracy_figure(run: RunRecord) -> Figure | None:
    """Accuracy by round, of the test set and of the clients' own parts; None without any."""
    return _curves(run, "accuracy", "Accuracy")


def metric_figure(run: RunRecord) -> Figure | None:
    """The module's first own metric by round, where it reports no accuracy; None without any."""
    name = own_metric(run)
    return _curves(run, name, name.replace("$", r"\$")) if name is not None else None


def loss_figure(run: RunRecord) -> Figure | None:
    """Loss by round, likewise; on a logarithmic scale where it spans two decades."""
    return _curves(run, "loss", "Loss")


@house_style()
def _curves(run: RunRecord, metric: str, title: str) -> Figure | None:
    curves = {source: curve(run, source, metric) for source in _SOURCES}
    values = [v for _, line in curves.values() for v in line if math.isfinite(v)]
    if not values:
        return None
    figure, axes = blank(title, "Round", title)
    for source, (turns, line) in curves.items():
        if any(map(math.isfinite, line)):
            _line(axes, source, turns, line)
    round_axis(axes, [record["round"] for record in run.rounds])
    legend_above(figure, axes)
    _value_axis(axes, metric, values)
    return figure


def _value_axis(axes: Axes, metric: str, values: list[float]) -> None:
    if is_share(metric):
        share_axis(axes.yaxis)
        axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))
        return
    if min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    number_axis(axes.yaxis)


def _line(axes: Axes, source: str, turns: list[int], values: list[float]) -> None:
    colour, marker, dashes = _SOURCES[source]
    axes.plot(
        turns,
        values,
        dashes,
        color=colour,
        marker=marker if len(turns) <= 30 else "",
        markersize=4.5,
        clip_on=False,  # a marker at 100% stays whole
        label=f"{source} ({'test set' if source == 'central' else 'clients'})",
    )
