"""Pictures of any mode and size to one array: headers are read first, then pixels in a stream."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flsimulation.data.arrays import refusal
from flsimulation.data.pixels import DEEP, PixelRangeError, decoded, orientation
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

if TYPE_CHECKING:
    from PIL import Image

_GREY = {"1", "L", "LA", "La"}
_TURNED = range(5, 9)  # EXIF orientations that change height and width
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip
"""What Pillow raises for files that are damaged, cut short or not images."""


class Picture(NamedTuple):
    """An image that is not read yet."""

    name: str
    """What an error calls it by."""
    open: Callable[[], Image.Image]
    """Opens it anew; Pillow reads the header only."""


class Header(NamedTuple):
    """What is known of an image without its pixels."""

    name: str
    size: tuple[int, int]
    """Width and height, after the EXIF orientation."""
    mode: str
    grey: bool
    frames: int
    turned: bool
    """Whether EXIF says that it must be turned or mirrored."""
    reduced: bool
    """Whether it has 16 bits per colour, of which Pillow reads 8."""


@dataclass(eq=False)
class Plan:
    """The common form of all images, and what was met on the way to it."""

    side: tuple[int, int]
    """Width and height of all."""
    grey: bool
    dtype: type[np.generic]
    """uint8 0..255, uint16 0..65535 or float32 0..1."""
    headers: Sequence[Header]
    transparent: int = 0
    """Images that had transparency, so far."""
    highest: float = field(default=0.0)
    """Largest value so far."""


def stack_pictures(pictures: Sequence[Picture], spec: Data) -> tuple[np.ndarray, str]:
    """Read pictures into one array and describe them in a line.

    Parameters
    ----------
    pictures : sequence of Picture
        At least one.

    Returns
    -------
    tuple of np.ndarray and str
        uint8 (8 bits), uint16 (16 bits) or float32 in 0..1, ``[n, h, w]`` where all become grey,
        else ``[n, h, w, 3]``; and the line for people.

    Raises
    ------
    DataError
        If one cannot be read, or sizes differ and ``data.image-size`` is 0.
    """
    plan = plan_pictures(pictures, spec)
    width, height = plan.side
    shape = (len(pictures), height, width) if plan.grey else (len(pictures), height, width, 3)
    array = np.empty(shape, plan.dtype)
    for row, picture in zip(array, pictures, strict=True):
        row[...] = _read(picture, plan, spec)
    return array, _line(plan)


def plan_pictures(pictures: Sequence[Picture], spec: Data) -> Plan:
    """Decide the common size, channels and depth from the headers."""
    headers = [read_header(picture, spec) for picture in pictures]
    grey = {"grey": True, "rgb": False}.get(spec.image_mode, all(h.grey for h in headers))
    modes = {header.mode for header in headers}
    deep = any(mode.startswith("I") for mode in modes)
    dtype = np.float32 if "F" in modes else np.uint16 if deep else np.uint8
    return Plan(common_side(headers, spec), grey, dtype, headers)


def read_header(picture: Picture, spec: Data) -> Header:
    """Read size, mode and the like of one picture."""
    try:
        with picture.open() as image:
            return _header(picture.name, image)
    except DataError:
        raise
    except (*UNREADABLE, _bomb()) as error:
        raise unreadable(picture.name, error, spec) from None


def _header(name: str, image: Image.Image) -> Header:
    turn = orientation(image)
    size = image.size[::-1] if turn in _TURNED else image.size
    reduced = image.mode in ("RGB", "RGBA") and any(";16" in str(t) for t in image.tile)  # type: ignore[attr-defined]
    frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    return Header(name, size, image.mode, _is_grey(image), frames, turn != 1, reduced)


def _is_grey(image: Image.Image) -> bool:
    if image.mode != "P" or image.palette is None:
        return image.mode in _GREY or image.mode in DEEP
    raw, content = image.palette.getdata()
    step = 4 if len(raw) == 4 else 3
    levels = np.frombuffer(content, np.uint8)[: len(content) // step * step].reshape(-1, step)
    return bool((levels[:, :1] == levels[:, :3]).all())


def common_side(headers: Sequence[Header], spec: Data) -> tuple[int, int]:
    """Width and height of all, or the side to which they are resized.

    Raises
    ------
    DataError
        If sizes differ and ``data.image-size`` is 0.
    """
    if spec.image_size:
        return (spec.image_size, spec.image_size)
    sizes = Counter(header.size for header in headers)
    (first, many), *others = sizes.most_common(2)
    if not others:
        return first
    other, few = others[0]
    such = next(header.name for header in headers if header.size == other)
    raise refusal(
        spec,
        f"images have {len(sizes)} sizes, for example {as_size(first)} ({many} "
        f"image{'s' if many > 1 else ''}) and {as_size(other)} ({few}, such as {such}); "
        f"set data.image-size",
    )


def _read(picture: Picture, plan: Plan, spec: Data) -> np.ndarray:
    try:
        with picture.open() as image:
            pixels, transparent = decoded(image, plan.side, plan.dtype, grey=plan.grey)
    except PixelRangeError as error:
        raise refusal(spec, f"{picture.name}: {error}") from None
    except (*UNREADABLE, _bomb()) as error:
        raise unreadable(picture.name, error, spec) from None
    plan.transparent += transparent
    if plan.dtype is not np.uint8:
        plan.highest = max(plan.highest, float(pixels.max()))
    return pixels


def unreadable(name: str, error: BaseException, spec: Data) -> DataError:
    """Make the error about a file that is damaged, cut short or no image."""
    text = " ".join(str(error).split()).split(": <_io.")[0]
    return refusal(spec, f"{name} cannot be read as an image: {text}; repair or remove it")


def _bomb() -> type[Exception]:
    from PIL import Image

    return Image.DecompressionBombError


def as_size(size: tuple[int, int]) -> str:
    """Width and height, as in ``64x48``."""
    return "x".join(map(str, size))


def _line(plan: Plan) -> str:
    headers, parts = plan.headers, [_sizes(plan)]
    greys = sum(header.grey for header in headers)
    if not plan.grey and greys > 0:
        parts.append(f"{greys} of them grey, with three equal channels")
    if plan.grey and greys < len(headers):
        parts.append(f"{len(headers) - greys} of them in colour, made grey")
    parts += _depth(plan)
    if plan.transparent:
        parts.append(f"{plan.transparent} with transparency, composited on black")
    if turned := sum(header.turned for header in headers):
        parts.append(f"{turned} turned as their EXIF orientation says")
    if several := [header.name for header in headers if header.frames > 1]:
        parts.append(f"{len(several)} of several frames, the first is used ({several[0]})")
    return "; ".join(parts)


def _sizes(plan: Plan) -> str:
    sizes = Counter(header.size for header in plan.headers)
    kind = "grey" if plan.grey else "RGB"
    (first, _), *_ = sizes.most_common(1)
    resized = ""
    if set(sizes) != {plan.side}:
        origin = as_size(first) if len(sizes) == 1 else f"{len(sizes)} sizes"
        bent = " (aspect ratios change)" if any(w != h for w, h in sizes) else ""
        resized = f", resized from {origin}{bent}"
    return f"images: {len(plan.headers):,} of {as_size(plan.side)}, {kind}{resized}"


def _depth(plan: Plan) -> list[str]:
    parts = []
    if plan.dtype is np.uint16:
        deep = sum(header.mode.startswith("I") for header in plan.headers)
        some = f"{deep} of them with " if deep < len(plan.headers) else ""
        parts.append(
            f"{some}16 bits a pixel, divided by 65535 (the largest is {plan.highest / 65535:.3g})"
        )
    if reduced := sum(header.reduced for header in plan.headers):
        parts.append(f"{reduced} with 16 bits a colour, of which 8 are read")
    return parts
