"""Images side by side, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from flsimulation.report.figures.canvas import WIDTH, blank
from flsimulation.report.formats import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.float64]
_MOST = 128  # pixels of a tile's side
_GAP = 0.06  # of a tile
_DIM = 0.25  # images darker than this are brightened


class Tiles(NamedTuple):
    """What is shown in rows."""

    rows: Sequence[npt.NDArray[np.float32]]
    """Images of each row, [n, channels, height, width]; a row may be empty."""
    names: Sequence[str]
    """Names of the rows."""
    masks: Sequence[npt.NDArray[np.int64]] | None
    """Class of each pixel, [n, height, width], shown in colour from 1 on."""
    colours: Sequence[str]
    """Colours of the masks' classes 1, 2, ..., repeated."""


def mosaic_figure(tiles: Tiles, named: str = "") -> Figure:
    """Draw rows of images in the report's style, which the caller has set; ``named`` is the title if given."""
    low, high = _range(tiles.rows)
    stretched = (low, high) != (0.0, 1.0)
    images = [[_coloured((x - low) / (high - low)) for x in row] for row in tiles.rows]
    if tiles.masks is not None:
        images = [
            [_overlaid(*pair, tiles.colours) for pair in zip(row, masks, strict=True)]
            for row, masks in zip(images, tiles.masks, strict=True)
        ]
    title = named or ("Examples of each class" if any(tiles.names) else "Examples")
    title += ", masks in colour" if tiles.masks is not None else ""
    title += f" (shown from {low:.3g} to {high:.3g})" if stretched else ""
    return _figure(_joined(images), [short(name) for name in tiles.names], title)


def _range(rows: Sequence[npt.NDArray[np.float32]]) -> tuple[float, float]:
    """Values shown as black and white: 0 and 1, unless the images lie elsewhere."""
    shown = [row for row in rows if row.size]
    low = min(float(row.min()) for row in shown)
    high = max(float(row.max()) for row in shown)
    if (low >= 0 and _DIM <= high <= 1) or low == high:
        return 0.0, 1.0
    return min(low, 0.0), high


def _coloured(image: npt.NDArray[np.float64]) -> Pixels:
    """One image [channels, height, width] as [height, width, 3], not larger than is shown."""
    image = np.moveaxis(image, 0, -1)
    image = image[:: _step(image.shape[0]), :: _step(image.shape[1])]
    return np.clip(np.broadcast_to(image[..., :3], (*image.shape[:2], 3)), 0, 1).astype(np.float64)


def _step(pixels: int) -> int:
    return -(-pixels // _MOST)


def _overlaid(image: Pixels, mask: npt.NDArray[np.int64], colours: Sequence[str]) -> Pixels:
    from matplotlib.colors import to_rgb

    mask = mask[:: _step(mask.shape[0]), :: _step(mask.shape[1])]
    palette = np.array([to_rgb(colour) for colour in colours])
    colour = palette[(mask - 1) % len(palette)]
    return np.where((mask > 0)[..., None], 0.45 * image + 0.55 * colour, image)


def _joined(rows: Sequence[Sequence[Pixels]]) -> Pixels:
    """One picture [height, width, 4] in which the gaps are transparent."""
    height, width, _ = next(image for row in rows for image in row).shape
    gap = max(1, round(_GAP * max(height, width)))
    across = max(map(len, rows))
    whole = np.zeros((len(rows) * (height + gap) - gap, across * (width + gap) - gap, 4))
    for down, row in enumerate(rows):
        for right, image in enumerate(row):
            top, left = down * (height + gap), right * (width + gap)
            whole[top : top + height, left : left + width] = np.dstack(
                [image, np.ones(image.shape[:2])]
            )
    return whole


def _figure(picture: Pixels, names: Sequence[str], title: str) -> Figure:
    high, wide = picture.shape[:2]
    left = 0.25 + 0.075 * max(map(len, names))
    room = WIDTH - left - 0.15
    height = min(0.6 + room * high / wide, 9.0)
    figure, axes = blank(title, "", "", height, left, 0.15, 0.45)
    smooth = min(high, wide) > 400
    axes.imshow(picture, interpolation="antialiased" if smooth else "nearest", aspect="equal")
    axes.set_anchor("NW")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    tile = high / len(names)
    axes.set_yticks([(i + 0.5) * tile for i in range(len(names))], names)
    axes.set_xticks([])
    return figure
