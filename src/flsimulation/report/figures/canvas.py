"""How a figure looks and how it is stored: PNG for papers, SVG that follows the page's colours."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib takes most of a second to import: only who draws pays for it
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1b2430", "#5d6875", "#dde2e8"
# Okabe and Ito (2008): distinguishable under every common colour-vision deficiency.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#e69f00", "#009e73", "#8a94a1"
VERMILION, PINK, SKY = "#d55e00", "#cc79a7", "#56b4e9"

CARD = "#fffffe"
"""White of the page's cards; not quite white, so that it differs from letters that stay white."""
WIDTH = 5.6
"""Of every figure, in inches."""

_VARIABLES = {
    CARD: "card",
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    GREY: "grey",
    VERMILION: "vermilion",
}
"""Colours that page.html redefines for its dark scheme."""

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.color": RULE,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0,
    "legend.columnspacing": 1.4,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # the browser's own font; a third of the size of drawn letters
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$"
    "xtick.color": MUTED,
    "xtick.labelsize": 9,
    "xtick.major.pad": 5,
    "xtick.major.size": 0,
    "ytick.color": MUTED,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
}


def load_plots() -> None:
    """Import what draws, which takes part of a second, before it is needed."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and store in the report's style; the user's matplotlibrc has no effect."""
    with _quiet(), warnings.catch_warnings():
        import matplotlib

        # A class name may use letters that the font lacks; a browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without matplotlib's remarks on its font cache, which the first import builds."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def blank(
    title: str,
    x: str,
    y: str,
    height: float = 3.3,
    left: float = 0.8,
    bottom: float = 0.5,
    top: float = 0.68,
) -> tuple[Figure, Axes]:
    """Make an empty figure with a title and named axes.

    Margins are given (in inches) instead of measured by a layout engine, which would draw every
    figure twice.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    area = (left / WIDTH, bottom / height, 1 - (left + 0.15) / WIDTH, 1 - (bottom + top) / height)
    axes = figure.add_axes(area, xlabel=x, ylabel=y)
    axes.yaxis.set_label_coords(0.1 / WIDTH, area[1] + area[3] / 2, transform=figure.transFigure)
    axes.xaxis.set_label_coords(area[0] + area[2] / 2, 0.08 / height, transform=figure.transFigure)
    axes.yaxis.label.set_verticalalignment("center")
    axes.xaxis.label.set_verticalalignment("bottom")
    figure.text(0.02, 1 - 0.08 / height, title, va="top", size=11, weight="bold")
    return figure, axes


def legend_above(figure: Figure, axes: Axes) -> None:
    """Put the legend in one row between title and plot, where it covers nothing."""
    place = (0.02, 1 - 0.36 / figure.get_figheight())
    axes.legend(loc="upper left", bbox_to_anchor=place, bbox_transform=figure.transFigure, ncols=6)


def number_axis(axis: Axis) -> None:
    """Show ticks as plain numbers, without a factor that stands apart from them."""
    from matplotlib.ticker import FuncFormatter, ScalarFormatter

    far = max(map(abs, axis.get_view_interval())) >= 1e6  # a diverged loss may reach 1e30
    if far or axis.get_scale() == "log":
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    else:
        plain = ScalarFormatter(useOffset=False)
        plain.set_scientific(False)
        axis.set_major_formatter(plain)


def round_axis(axes: Axes, turns: Sequence[int]) -> None:
    """Reach from the first round to the last, with ticks at whole rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(min(turns) - 0.5, max(turns) + 0.5)
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )


def share_axis(axis: Axis) -> None:
    """Show ticks as percentages, of values in 0..1."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0))


@house_style()
def png(figure: Figure) -> bytes:
    """Encode the figure as PNG, 150 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


@house_style()
def svg(figure: Figure, name: str) -> str:
    """Encode the figure as an ``<svg>`` element for a page that defines the report's colours.

    Parameters
    ----------
    figure : Figure
        One of the report's figures.
    name : str
        Unique in the page; all ids begin with it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # deterministic, and no URL
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = name
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), name)


def _inline(text: str, name: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
