"""What a data set looks like: some of its images, or histograms of its columns and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flsimulation.data.dataset import Dataset
from flsimulation.data.leaves import named
from flsimulation.data.summary import kind_of, spans
from flsimulation.report.figures.canvas import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    WIDTH,
    house_style,
    number_axis,
)
from flsimulation.report.figures.mosaic import Tiles, mosaic_figure
from flsimulation.report.formats import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]
_MOST = 20
"""Histograms in a figure."""
_ACROSS = 4
_BINS = 30
_LETTERS = 15  # that fit into an inch
_NAMED = 8  # classes whose names are readable below their bars
_MASKS = (ORANGE, SKY, GREEN, VERMILION, PINK, BLUE)
_ROWS, _EACH = 10, 8  # of images: classes, and examples of each


class Part(NamedTuple):
    """One small histogram."""

    title: str
    values: Values
    names: Sequence[str] = ()
    """Names of the classes 0, 1, ..., whose bars are drawn instead of bins."""
    colour: str = BLUE


@house_style()
def data_figure(dataset: Dataset) -> Figure:
    """Draw examples of the training set.

    Returns
    -------
    Figure
        Images: some of each class, with masks in colour. Others: histograms of inputs and labels.
    """
    every = named(dataset.x_train)
    images = [x for _, x in every if kind_of(dataset, x) == "images"]
    if images:
        return mosaic_figure(_tiles(dataset, images[0]))
    parts = [_label(dataset), *(part for name, x in every for part in _inputs(dataset, name, x))]
    left_out = f" ({_MOST} of {len(parts)})" if len(parts) > _MOST else ""
    return _histograms(f"Label and inputs{left_out}", parts[:_MOST])


def _tiles(dataset: Dataset, x: torch.Tensor) -> Tiles:
    labels = dataset.labels
    if labels is None:
        count = min(len(x), 4 * _EACH)
        places = [np.arange(i, min(i + _EACH, count)) for i in range(0, count, _EACH)]
        names = [""] * len(places)
    else:
        shown = range(min(len(dataset.classes), _ROWS))
        places = [np.flatnonzero(labels == number)[:_EACH] for number in shown]
        names = [dataset.classes[number] for number in shown]
    images = [x[place].numpy() for place in places]
    has_masks = dataset.y_train.ndim == 3 and not dataset.y_train.is_floating_point()
    masks = [dataset.y_train[place].numpy() for place in places] if has_masks else None
    return Tiles(images, names, masks, _MASKS)


def _label(dataset: Dataset) -> Part:
    y = dataset.y_train.numpy()
    if dataset.labels is not None:
        return Part("Label", dataset.labels.astype(float), dataset.classes, ORANGE)
    if dataset.task == "multilabel":
        return Part("Labels", np.nonzero(y)[1].astype(float), dataset.classes, ORANGE)
    return Part("Label", y.ravel().astype(float), (), ORANGE)


def _inputs(dataset: Dataset, name: str, x: torch.Tensor) -> list[Part]:
    kind = kind_of(dataset, x)
    if kind != "table":
        title = name or ("Tokens" if kind == "tokens" else "Inputs")
        return [Part(title, x.numpy().ravel().astype(float))]
    flat = x.reshape(len(x), -1)
    parts = []
    for column, span in spans(dataset, x):
        values, title = flat[:, span].numpy(), f"{name} {column.name}".strip()
        if column.kind == "category" or column.width > 1:
            categories = np.nonzero(values)[1].astype(float)
            names = column.names or [str(i) for i in range(column.width)]
            parts.append(Part(title, categories, names))
        else:
            parts.append(Part(title, values[:, 0].astype(float)))
    return parts


def _histograms(title: str, parts: Sequence[Part]) -> Figure:
    from matplotlib.figure import Figure

    across = min(_ACROSS, len(parts))
    height = 0.55 + 1.45 * -(-len(parts) // across)
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    figure.text(0.02, 1 - 0.08 / height, title, va="top", size=11, weight="bold")
    step, gap = (WIDTH - 0.15) / across, 0.42
    for number, part in enumerate(parts):
        row, column = divmod(number, across)
        place = (
            (0.1 + gap + column * step) / WIDTH,
            1 - (0.65 + row * 1.45 + 0.85) / height,
            (step - gap - 0.12) / WIDTH,
            0.85 / height,
        )
        _histogram(figure.add_axes(place), part)
    return figure


def _histogram(axes: Axes, part: Part) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(short(part.title, 18), size=9, loc="left", color=MUTED)
    axes.tick_params(labelsize=7)
    if part.names:
        _bars(axes, part)
    else:
        _bins(axes, part)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    number_axis(axes.yaxis)


def _bars(axes: Axes, part: Part) -> None:
    numbers = np.arange(len(part.names))
    counts = np.bincount(part.values.astype(int), minlength=len(numbers))[: len(numbers)]
    axes.bar(numbers, counts, width=0.8, color=part.colour)
    if len(numbers) > _NAMED:
        return
    room = int(axes.get_position().width * WIDTH * _LETTERS / len(numbers))
    crowded = max(len(str(name)) for name in part.names) > room
    axes.set_xticks(numbers, [short(str(name), 9) for name in part.names])
    for label in axes.get_xticklabels() if crowded else []:
        label.set(rotation=30, ha="right", rotation_mode="anchor")


def _bins(axes: Axes, part: Part) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    edges = _edges(part.values)
    counts, _ = np.histogram(part.values, edges)
    axes.stairs(counts, edges.tolist(), fill=True, color=part.colour)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, min_n_ticks=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _brief(value)))


def _edges(values: Values) -> Values:
    """Edges of the bins; whole numbers have bins of whole width, or some would count more of them."""
    lowest, highest = float(values.min()), float(values.max())
    if bool((values == np.floor(values)).all()):
        width = max(1, math.ceil((highest - lowest + 1) / _BINS))
        return np.arange(lowest, highest + width + 1, width) - 0.5
    return np.linspace(lowest, highest, _BINS + 1)


def _brief(value: float) -> str:
    """``150000`` -> ``150k``, as small axes have no room for more."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * (10 if unit == "k" else 1):
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"
