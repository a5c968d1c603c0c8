"""Who holds what: the labels of each client's part, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flsimulation.report.canvas import BLUE, INK, blank, house_style
from flsimulation.report.formats import count, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS = 20
"""Up to so many clients are rows of the heat map; more are columns, where there is room."""
_NUMBERED = 12
"""Up to so many classes, the cells of the rows also say their number."""


@house_style()
def partition_figure(histogram: Mapping[str, Sequence[int]], classes: Sequence[str] = ()) -> Figure:
    """Draw how the examples are divided.

    Parameters
    ----------
    histogram : mapping of str to sequence of int
        Examples of each class by partition id; lists of one are sizes, where targets are no
        classes. At least one partition.
    classes : sequence of str
        Names of the classes; their numbers stand in for names that are missing.

    Returns
    -------
    Figure
        A heat map, clients by classes, or bars of sizes.
    """
    partitions = sorted(histogram, key=int)
    width = max(len(row) for row in histogram.values())
    table = np.zeros((len(partitions), width))  # [clients, classes]
    for line, partition in zip(table, partitions, strict=True):
        line[: len(histogram[partition])] = histogram[partition]
    if width == 1:
        return _sizes(table[:, 0], partitions)
    names = [short(classes[i] if i < len(classes) else str(i)) for i in range(width)]
    return _rows(table, partitions, names) if len(table) <= _ROWS else _columns(table, names)


def _sizes(sizes: np.ndarray, partitions: list[str]) -> Figure:
    figure, axes = blank("Examples of each client", "Client", "Examples")
    edges = np.arange(len(sizes) + 1) - 0.5
    if len(sizes) <= 3 * _ROWS:
        axes.bar(np.arange(len(sizes)), sizes, width=0.8, color=BLUE)
    else:  # one shape instead of a thousand bars
        axes.stairs(sizes, edges.tolist(), fill=True, color=BLUE)
    axes.set_xlim(edges[0] - 0.1, edges[-1] + 0.1)
    _client_ticks(axes, partitions)
    return figure


def _client_ticks(axes: Axes, partitions: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    if len(partitions) <= _ROWS:
        axes.set_xticks(range(len(partitions)), partitions)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))


def _rows(table: np.ndarray, partitions: list[str], names: list[str]) -> Figure:
    height = min(1.3 + 0.36 * len(table), 5.2)
    figure, axes = blank("Examples by client and class", "Class", "Client", height)
    _heat(axes, table, bar=len(names) > _NUMBERED)
    axes.set_yticks(range(len(table)), partitions)
    _class_ticks(axes, names)
    if len(names) <= _NUMBERED:
        _numbers(axes, table)
    return figure


def _class_ticks(axes: Axes, names: list[str]) -> None:
    """Every name, or with many classes every so many; upright only where they are short."""
    shown = range(0, len(names), -(-len(names) // 26))
    crowded = max(len(names[i]) for i in shown) * len(shown) > 56
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(shown, [names[i] for i in shown], **turn)


def _numbers(axes: Axes, table: np.ndarray) -> None:
    dark = table > 0.55 * table.max()
    for (row, column), value in np.ndenumerate(table):
        colour = "#ffffff" if dark[row, column] else INK
        axes.text(column, row, count(value), ha="center", va="center", fontsize=7.5, color=colour)


def _columns(table: np.ndarray, names: list[str]) -> Figure:
    figure, axes = blank("Examples by client and class", "Client", "Class")
    _heat(axes, table.T, bar=True)
    shown = range(0, len(names), -(-len(names) // 16))
    axes.set_yticks(shown, [names[i] for i in shown])
    return figure


def _heat(axes: Axes, table: np.ndarray, bar: bool) -> None:
    """Blue that fades to nothing, so that zero is the colour of the page, be it light or dark."""
    from matplotlib.colors import LinearSegmentedColormap

    fade = LinearSegmentedColormap.from_list("fade", [(0, 0.447, 0.698, 0), (0, 0.447, 0.698, 1)])
    image = axes.imshow(
        table, cmap=fade, aspect="auto", interpolation="none", vmin=0, vmax=max(1, table.max())
    )
    axes.grid(visible=False)
    if bar:
        scale = axes.figure.colorbar(image, ax=axes, label="Examples", fraction=0.05, pad=0.02)
        scale.outline.set_visible(False)
        scale.solids.set_rasterized(True)
