"""What adds up within a round: its time by phase, its failures by reason; drawn as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from flsimulation.errors import FAILURE_REASONS
from flsimulation.report.figures.canvas import (
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
    round_axis,
)
from flsimulation.report.formats import short
from flsimulation.report.scores import PHASES, failure_counts, phase_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flsimulation.rundir import RunRecord

Values: TypeAlias = npt.NDArray[np.float64]
_MANY = 60
"""More rounds than this are drawn as one outline instead of a bar each."""
_PHASE_COLOURS = dict(zip(PHASES, (BLUE, ORANGE, GREEN, GREY), strict=True))
_REASON_COLOURS = dict(zip(FAILURE_REASONS, (VERMILION, PINK, ORANGE, SKY, GREY), strict=True))


@house_style()
def times_figure(run: RunRecord) -> Figure | None:
    """Seconds of each round by phase, stacked; None before the first round."""
    seconds = [phase_seconds(record) for record in run.rounds]
    layers = {phase: [row[phase] for row in seconds] for phase in PHASES}
    if not any(map(sum, layers.values())):
        return None
    figure, axes = blank("Time of a round", "Round", "Seconds")
    _stack(figure, axes, [record["round"] for record in run.rounds], layers, _PHASE_COLOURS)
    number_axis(axes.yaxis)
    return figure


@house_style()
def failures_figure(run: RunRecord) -> Figure | None:
    """Failed replies of each round by reason, stacked; None where there are none."""
    from matplotlib.ticker import MaxNLocator

    counts = failure_counts(run)
    if not counts:
        return None
    turns = sorted({record["round"] for record in run.rounds} | set(counts))
    reasons = sorted({reason for row in counts.values() for reason in row})
    layers = {r: [float(counts[t][r]) if t in counts else 0.0 for t in turns] for r in reasons}
    figure, axes = blank("Failures", "Round", "Clients")
    _stack(figure, axes, turns, layers, _REASON_COLOURS)
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
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
            _layer(axes, turns, np.array(values), base, colours.get(name, GREY), short(name))
            base = base + values
    round_axis(axes, turns)
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
