"""Pixels: one image of any mode to an array, and arrays of images to float32 in 0..1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

DEEP = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}
"""Pillow's modes of grey with more than 8 bits; ``F`` are floats."""
CHANNELS = (1, 3, 4)
"""Grey, colour, colour with transparency."""
_SMALLEST = 8  # pixels of a side from which on an array [n, a, b, 3] of floats is taken for images
_FULL = 65535
_BYTES = 32  # floats above it, and none below 0, are bytes that were not scaled
_ORIENTATION = 0x0112  # EXIF's number of it


class PixelRangeError(ValueError):
    """Pixels outside the range that can be scaled to 0..1."""


def decoded(
    image: Image.Image, side: tuple[int, int], dtype: type[np.generic], *, grey: bool
) -> tuple[np.ndarray, bool]:
    """Read one image's pixels in a common form.

    The EXIF orientation is respected, transparency is composited on black (if it is the same
    everywhere, it is dropped), another size is resized with antialiasing.

    Parameters
    ----------
    side : tuple of int
        Width and height.
    dtype : type
        uint8 0..255, uint16 0..65535 or float32 0..1.
    grey : bool
        Whether to return ``[h, w]``, else ``[h, w, 3]``.

    Returns
    -------
    tuple of np.ndarray and bool
        Pixels, and whether there was transparency.

    Raises
    ------
    PixelRangeError
        If values are outside the range of 16 bits, or floats outside 0..1.
    """
    from PIL import ImageOps

    image.load()
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return _deep(image, side, dtype, grey=grey), False
    image, transparent = _opaque(image)
    image = _resized(image.convert("L" if grey else "RGB"), side)
    return _with_depth(np.asarray(image), dtype), transparent


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none.

    Of a PNG that is not loaded yet only the header is asked, or all of it would be read.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    turn = image.getexif().get(_ORIENTATION, 1)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _opaque(image: Image.Image) -> tuple[Image.Image, bool]:
    """Without transparency: composited on black, or dropped where it is the same everywhere."""
    from PIL import Image

    if not image.has_transparency_data:
        return image, False
    full = image.convert("RGBA")
    alpha = full.getchannel("A")
    lowest, highest = alpha.getextrema()
    if lowest == highest:
        return full.convert("RGB"), False
    black = Image.new("RGB", full.size)
    black.paste(full.convert("RGB"), mask=alpha)
    return black, True


def _deep(
    image: Image.Image, side: tuple[int, int], dtype: type[np.generic], *, grey: bool
) -> np.ndarray:
    from PIL import Image

    pixels = np.asarray(image)
    top = 1.0 if image.mode == "F" else float(_FULL)
    lowest, highest = pixels.min(), pixels.max()
    if not (lowest >= 0 and highest <= top):
        raise PixelRangeError(
            f"pixels of {'floats' if top == 1 else 'more than 8 bits'} must be in 0 to {top:g}, got "
            f"{lowest} to {highest}; scale them, or read the images by a function of your own"
        )
    if image.size != side:
        wide = Image.fromarray(pixels.astype(np.float32))
        pixels = np.asarray(_resized(wide, side))
    if dtype is np.uint16:
        pixels = np.rint(pixels).astype(np.uint16)
    else:
        pixels = pixels.astype(np.float32) / np.float32(top)
    return pixels if grey else np.repeat(pixels[:, :, None], 3, axis=2)


def _resized(image: Image.Image, side: tuple[int, int]) -> Image.Image:
    from PIL import Image

    if image.size == side:
        return image
    return image.resize(side, Image.Resampling.BILINEAR)  # Pillow's averages when it shrinks


def _with_depth(pixels: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """Bytes in the range of deeper images beside them."""
    if dtype is np.uint16:
        return pixels.astype(np.uint16) * np.uint16(257)  # 255 -> 65535
    if dtype is np.float32:
        return pixels.astype(np.float32) / np.float32(255)
    return pixels


def prepare_images(array: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Bring arrays of images into the form that models expect; leave all others as they are.

    uint16 ``[n, h, w]`` and ``[n, h, w, c]`` become float32 in 0..1, divided by 65535. Floats
    ``[n, h, w, c]`` with 1, 3 or 4 channels last become ``[n, c, h, w]``. Bytes are left to
    `flsimulation.data.arrays.inputs`.

    Returns
    -------
    tuple of np.ndarray and tuple of str
        The array, and lines for people on what was changed.
    """
    if array.dtype == np.uint16 and array.ndim in (3, 4):
        return scale_deep(array), ("images: uint16, divided by 65535",)
    if array.dtype.kind != "f" or array.ndim != 4:
        return array, ()
    notes = []
    if _is_channels_last(array.shape):
        moved = np.ascontiguousarray(np.moveaxis(array, -1, 1))
        notes.append(
            f"images: floats of shape {_shape(array)} have their channels last; they were moved to "
            f"{_shape(moved)}"
        )
        array = moved
    if array.shape[1] in CHANNELS and array.size and array.max() > _BYTES and array.min() >= 0:
        notes.append(
            f"images: floats from {array.min():g} to {array.max():g} are not scaled; divide them by "
            f"255, or save them as uint8"
        )
    return array, tuple(notes)


def scale_deep(array: np.ndarray) -> np.ndarray:
    """Convert uint16 ``[n, h, w]`` or ``[n, h, w, c]`` to float32 in 0..1, the channels first."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[-1] in CHANNELS:
        array = np.moveaxis(array, -1, 1)
    scaled = array.astype(np.float32, order="C")
    scaled /= np.float32(_FULL)
    return scaled


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    _, first, second, last = shape
    return last in CHANNELS and first not in CHANNELS and min(first, second) >= _SMALLEST


def _shape(array: np.ndarray[Any, Any]) -> str:
    return "[n, " + ", ".join(map(str, array.shape[1:])) + "]"
