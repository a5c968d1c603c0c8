"""The figures of a run: matplotlib objects that know nothing of files or pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from flsimulation.errors import FAILURE_REASONS
from flsimulation.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    blank,
    house_style,
    legend_above,
    number_axis,
    share_axis,
)
from flsimulation.report.clients import clients_figure
from flsimulation.report.formats import is_share
from flsimulation.report.log import RunLog, look
from flsimulation.report.partition import partition_figure
from flsimulation.report.scores import (
    PHASES,
    curve,
    failure_counts,
    phase_seconds,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "accuracy_figure",
    "clients_figure",
    "failures_figure",
    "figures",
    "loss_figure",
    "partition_figure",
    "times_figure",
]

Values: TypeAlias = npt.NDArray[np.float64]
_MANY = 60
"""More rounds than this are drawn as one outline instead of a bar each."""
_SOURCES = {"central": (BLUE, "o", "-"), "federated": (VERMILION, "s", "--")}
_PHASE_COLOURS = dict(zip(PHASES, (BLUE, ORANGE, GREEN, GREY), strict=True))
_REASON_COLOURS = dict(zip(FAILURE_REASONS, (VERMILION, PINK, ORANGE, SKY), strict=True))


def figures(log: RunLog) -> dict[str, Figure]:
    """All figures that the run has the numbers for, by name."""
    makers: dict[str, Callable[[RunLog], Figure | None]] = {
        "accuracy": accuracy_figure,
        "loss": loss_figure,
        "partition": _partition,
        "clients": clients_figure,
        "times": times_figure,
        "failures": failures_figure,
    }
    made = {name: make(log) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def accuracy_figure(log: RunLog) -> Figure | None:
    """Accuracy by round, of the test set and of the clients' own parts; None without any."""
    return _curves(log, "accuracy", "Accuracy")


def loss_figure(log: RunLog) -> Figure | None:
    """Loss by round, likewise; on a logarithmic scale where it spans two decades."""
    return _curves(log, "loss", "Loss")


@house_style()
def _curves(log: RunLog, metric: str, title: str) -> Figure | None:
    curves = {source: curve(log, source, metric) for source in _SOURCES}
    values = [v for _, line in curves.values() for v in line if math.isfinite(v)]
    if not values:
        return None
    figure, axes = blank(title, "Round", title)
    for source, (turns, line) in curves.items():
        if any(map(math.isfinite, line)):
            _line(axes, source, turns, line)
    _round_axis(axes, [record["round"] for record in log.rounds])
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


def _round_axis(axes: Axes, turns: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(min(turns) - 0.5, max(turns) + 0.5)
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )


@house_style()
def times_figure(log: RunLog) -> Figure | None:
    """Seconds of each round by phase, stacked; None before the first round."""
    seconds = [phase_seconds(record) for record in log.rounds]
    layers = {phase: [row[phase] for row in seconds] for phase in PHASES}
    if not any(map(sum, layers.values())):
        return None
    figure, axes = blank("Time of a round", "Round", "Seconds")
    _stack(figure, axes, [record["round"] for record in log.rounds], layers, _PHASE_COLOURS)
    number_axis(axes.yaxis)
    return figure


@house_style()
def failures_figure(log: RunLog) -> Figure | None:
    """Failed replies of each round by reason, stacked; None where there are none."""
    from matplotlib.ticker import MaxNLocator

    counts = failure_counts(log)
    if not counts:
        return None
    turns = sorted({record["round"] for record in log.rounds} | set(counts))
    reasons = sorted({reason for row in counts.values() for reason in row})
    layers = {r: [float(counts[t][r]) if t in counts else 0.0 for t in turns] for r in reasons}
    figure, axes = blank("Failures", "Round", "Clients")
    _stack(figure, axes, turns, layers, _REASON_COLOURS)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _stack(
    figure: Figure,
    axes: Axes,
    turns: list[int],
    layers: Mapping[str, list[float]],
    colours: Mapping[str, str],
) -> None:
    base = np.zeros(len(turns))
    for name, values in layers.items():
        if any(values):
            _layer(axes, turns, np.array(values), base, colours.get(name, GREY), name)
            base = base + values
    _round_axis(axes, turns)
    legend_above(figure, axes)


def _layer(
    axes: Axes, turns: list[int], values: Values, base: Values, colour: str, name: str
) -> None:
    if len(turns) <= _MANY:
        axes.bar(
            turns,
            values,
            bottom=base,
            width=min(0.8, 0.1 + 0.1 * len(turns)),
            color=colour,
            label=name,
        )
    else:
        edges = [turn - 0.5 for turn in (*turns, turns[-1] + 1)]
        axes.stairs(base + values, edges, baseline=base, fill=True, color=colour, label=name)


def _partition(log: RunLog) -> Figure | None:
    histogram = look(log.manifest, "data", "histogram")
    return (
        partition_figure(histogram, look(log.manifest, "data", "classes") or ())
        if histogram
        else None
    )
