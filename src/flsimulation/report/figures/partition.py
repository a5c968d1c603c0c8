"""Who holds what: the labels of each client's part, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from flsimulation.report.figures.canvas import (
    BLUE,
    CARD,
    INK,
    MUTED,
    blank,
    house_style,
    number_axis,
)
from flsimulation.report.formats import count, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Table: TypeAlias = npt.NDArray[np.float64]
"""Examples, [clients, classes]."""
_ROWS = 20
"""Up to this number of clients are rows of the heat map; more are columns, where there is room."""
_CHARACTERS = 56  # of all clients' names below an axis
_NUMBERED = 12
"""Up to this number of classes, the cells of the rows also show their number."""


@house_style()
def partition_figure(
    histogram: Mapping[str, Sequence[int]],
    classes: Sequence[str] = (),
    clients: Sequence[str] = (),
) -> Figure:
    """Draw how the examples are divided.

    Parameters
    ----------
    histogram : mapping of str to sequence of int
        Examples of each class by partition id; lists of one are sizes, where targets are no
        classes. At least one partition.
    classes : sequence of str
        Names of the classes; their numbers stand in for names that are missing.
    clients : sequence of str
        Names of the clients 0, 1, ..., for bars; likewise, and where there is room for them.

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
        fits = sum(len(name) + 1 for name in clients) <= _CHARACTERS
        return _sizes(table[:, 0], list(clients) if clients and fits else partitions)
    names = [short(str(classes[i]) if i < len(classes) else str(i)) for i in range(width)]
    return _rows(table, partitions, names) if len(table) <= _ROWS else _columns(table, names)


def _sizes(sizes: Table, partitions: list[str]) -> Figure:
    figure, axes = blank("Examples of each client", "Client", "Examples", top=0.45)
    edges = np.arange(len(sizes) + 1) - 0.5
    if len(sizes) <= 3 * _ROWS:
        axes.bar(np.arange(len(sizes)), sizes, width=0.8, color=BLUE)
    else:  # one shape instead of a thousand bars
        axes.stairs(sizes, edges.tolist(), fill=True, color=BLUE)
    axes.set_xlim(edges[0] - 0.1, edges[-1] + 0.1)
    _client_ticks(axes, partitions)
    number_axis(axes.yaxis)
    return figure


def _client_ticks(axes: Axes, partitions: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    if len(partitions) <= _ROWS:
        axes.set_xticks(range(len(partitions)), partitions)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))


def _rows(table: Table, partitions: list[str], names: list[str]) -> Figure:
    height = min(max(3.3, 1.4 + 0.3 * len(table)), 6.5)
    shown = range(0, len(names), -(-len(names) // 26))
    longest = max(len(names[i]) for i in shown)
    crowded = longest * len(shown) > 50
    bottom = 0.5 + 0.05 * longest if crowded else 0.5
    figure, axes = _heat(
        table, ("Class", "Client"), height, 0.6, bottom, bar=len(names) > _NUMBERED
    )
    axes.set_yticks(range(len(table)), partitions)
    axes.set_xticks(shown, [names[i] for i in shown])
    if crowded:
        axes.tick_params("x", rotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    _separate(axes, table)
    if len(names) <= _NUMBERED:
        _numbers(axes, table)
    return figure


def _separate(axes: Axes, table: Table) -> None:
    """Part the cells; where all hold the same, they would be one block of colour."""
    rows, columns = table.shape
    if columns <= 40:
        axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, colors=CARD, linewidth=1.2)
        axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, colors=CARD, linewidth=1.2)


def _numbers(axes: Axes, table: Table) -> None:
    dark = table > 0.55 * table.max()
    for (row, column), value in np.ndenumerate(table):
        if value:
            colour = "#ffffff" if dark[row, column] else INK
            axes.text(
                column, row, count(value), ha="center", va="center", fontsize=7.5, color=colour
            )


def _columns(table: Table, names: list[str]) -> Figure:
    shown = range(0, len(names), -(-len(names) // 16))
    left = 0.45 + 0.078 * max(len(names[i]) for i in shown)
    figure, axes = _heat(table.T, ("Client", "Class"), 3.3, left, 0.5, bar=True)
    axes.set_yticks(shown, [names[i] for i in shown])
    return figure


def _heat(
    table: Table, labels: tuple[str, str], height: float, left: float, bottom: float, bar: bool
) -> tuple[Figure, Axes]:
    """Blue that fades to nothing: zero is the colour of the page, be it light or dark."""
    from matplotlib.colors import LinearSegmentedColormap

    figure, axes = blank(
        "Examples by client and class", *labels, height, left, bottom, 0.68 if bar else 0.45
    )
    fade = LinearSegmentedColormap.from_list("fade", [(0, 0.447, 0.698, 0), (0, 0.447, 0.698, 1)])
    image = axes.imshow(
        table, cmap=fade, aspect="auto", interpolation="none", vmin=0, vmax=max(1, table.max())
    )
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    if bar:
        _scale(figure, image)
    return figure, axes


def _scale(figure: Figure, image: AxesImage) -> None:
    """Say what the colours mean, in a narrow bar between title and map."""
    height = figure.get_figheight()
    place = figure.add_axes((0.62, 1 - 0.42 / height, 0.35, 0.09 / height))
    bar = figure.colorbar(image, cax=place, orientation="horizontal")
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    place.tick_params(pad=2, labelsize=8)
    place.grid(visible=False)
    figure.text(0.6, 1 - 0.42 / height, "Examples", ha="right", size=8, color=MUTED)
