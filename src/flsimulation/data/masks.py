"""A folder of segmentation: ``images/*.png``, and ``masks/*.png`` with a class for each pixel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flsimulation.data.arrays import Examples, Inputs, Parts, refusal
from flsimulation.data.images import image_files, of_file, read_images, split_folders
from flsimulation.data.pictures import UNREADABLE, as_size, unreadable
from flsimulation.data.task import IGNORED, About
from flsimulation.experiment.spec import Data

if TYPE_CHECKING:
    from PIL import Image

_VOID = 255
_WHITE = (255, 65535)
_ENDS = ("", "_mask", "-mask", "_seg")
"""What a mask's name may have after the name of its image."""
_MANY = 64  # highest class number from which on gaps show that values are no class numbers


def has_masks(folder: Path) -> bool:
    """Whether ``folder``, or its folder ``train``, has the folders ``images`` and ``masks``."""
    return any(
        image_files(place / "images", "*") and image_files(place / "masks", "*")
        for place in (folder, folder / "train")
    )


def read_mask_folder(folder: Path, spec: Data) -> Parts:
    """Read images and masks: ``images`` and ``masks``, or the two in ``train`` and in ``test``.

    Grey values and palette indices of the masks are class numbers; where they are only 0 and 255,
    they are two classes.

    Raises
    ------
    DataError
        If an image has no mask, a mask differs in size, or its values are no class numbers.
    """
    pairs = [_pairs(part, spec) for part in split_folders(folder)]
    every = [pair for part in pairs for pair in part]
    x, line = read_images([image for image, _ in every], spec)
    masks = _read_masks(every, _size(x, spec), spec)
    y, classes, about = _as_classes(masks, [mask for _, mask in every], spec)
    size = len(pairs[0])
    held_out = Examples(x[size:], y[size:]) if len(pairs) > 1 else None
    spec = spec.model_copy(update={"task": "segmentation"})
    notes = (line, about, *_extra(folder, [mask for _, mask in every]))
    return Parts(
        spec, Examples(x[:size], y[:size]), held_out, tuple(classes), About("masks"),
        Inputs("images", "test images", notes=notes),
    )  # fmt: skip


def _pairs(part: Path, spec: Data) -> list[tuple[Path, Path]]:
    images = image_files(part / "images", "*")
    masks = {path.stem: path for path in image_files(part / "masks", "*")}
    found, alone = [], []
    for image in images:
        mask = next((masks[image.stem + end] for end in _ENDS if image.stem + end in masks), None)
        if mask is None:
            alone.append(image)
        else:
            found.append((image, mask))
    if alone:
        raise refusal(
            spec,
            f"{len(alone)} of {len(images)} images have no mask, such as {alone[0]}; add "
            f"{part / 'masks' / alone[0].stem}.png, or remove the image",
        )
    return found


def _size(x: np.ndarray, spec: Data) -> tuple[int, int]:
    """Width and height of stacked images, bytes ``[n, h, w, ...]`` or floats ``[n, c, h, w]``."""
    height, width = x.shape[2:4] if x.dtype == np.float32 else x.shape[1:3]
    return (spec.image_size, spec.image_size) if spec.image_size else (width, height)


def _read_masks(
    pairs: Sequence[tuple[Path, Path]], side: tuple[int, int], spec: Data
) -> np.ndarray:
    """Stack masks as uint8 or, if one has 16 bits, uint16 ``[n, h, w]``."""
    masks = np.empty((len(pairs), side[1], side[0]), np.uint8)
    for number, (image, mask) in enumerate(pairs):
        values = _read_mask(image, mask, side, spec)
        if values.dtype == np.uint16 and masks.dtype == np.uint8:
            masks = masks.astype(np.uint16)
        masks[number] = values
    return masks


def _read_mask(image: Path, path: Path, side: tuple[int, int], spec: Data) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with of_file(path).open() as mask:
            mask.load()
            mask = ImageOps.exif_transpose(mask)
            if mask.size != side and not spec.image_size:
                raise refusal(
                    spec,
                    f"{path} has {as_size(mask.size)} pixels, but {image} {as_size(side)}; give "
                    f"both one size, or set data.image-size",
                )
            resized = mask.resize(side, Image.Resampling.NEAREST) if mask.size != side else mask
            return _values(resized, path, spec)
    except UNREADABLE as error:
        raise unreadable(str(path), error, spec) from None


def _values(mask: Image.Image, path: Path, spec: Data) -> np.ndarray:
    """Grey values, or indices of a palette, which are the classes."""
    if mask.mode in ("1", "L", "P"):
        return np.asarray(mask, np.uint8)
    if mask.mode in ("LA", "PA"):
        return np.asarray(mask)[..., 0]
    values = np.asarray(mask)
    if values.ndim == 2:
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max or values.dtype.kind == "f":
            raise refusal(spec, f"{path} has values that are no class numbers; use 0, 1, 2, ...")
        return values.astype(np.uint16)
    colours = np.asarray(mask.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise refusal(
            spec,
            f"{path} marks classes by colours; save grey values or a palette, with the class "
            f"numbers 0, 1, 2, ...",
        )
    return colours[..., 0]


def _as_classes(
    masks: np.ndarray, paths: Iterable[Path], spec: Data
) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Class numbers int64 [n, h, w], their names, and a line on how they were found."""
    counts = sum(
        np.bincount(mask.ravel(), minlength=np.iinfo(masks.dtype).max + 1) for mask in masks
    )
    values = np.flatnonzero(counts).tolist()
    if values[-1] in _WHITE and set(values) <= {0, values[-1]}:
        line = f"masks: 0 and {values[-1]} are the classes 0 and 1"
        return (masks == values[-1]).astype(np.int64), ("0", "1"), line
    void = masks.dtype == np.uint8 and values[-1] == _VOID and len(values) > 1
    used = values[:-1] if void else values
    _check_values(used, values, paths, spec)
    y = masks.astype(np.int64)
    line = f"masks: the values {_listed(used)} are class numbers"
    if void:
        y[masks == _VOID] = IGNORED
        line += f"; 255 is no class (it becomes {IGNORED}, which cross-entropy ignores)"
    return y, tuple(str(number) for number in range(max(used[-1] + 1, 2))), line


def _check_values(used: list[int], values: list[int], paths: Iterable[Path], spec: Data) -> None:
    if used[-1] < max(_MANY, 4 * len(used)) and len(used) <= _VOID - 1:
        return
    lossy = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg", ".webp")]
    remedy = (
        f"{lossy[0].name} is stored with loss; save masks as PNG"
        if lossy
        else "number the classes 0, 1, 2, ..."
    )
    raise refusal(
        spec, f"masks have the {len(values)} values {_listed(values)}, no class numbers; {remedy}"
    )


def _listed(values: Sequence[int]) -> str:
    if len(values) <= 6:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[:4]))}, ..., {values[-1]}"


def _extra(folder: Path, used: Iterable[Path]) -> list[str]:
    """A line on masks without an image."""
    every = {path for part in split_folders(folder) for path in image_files(part / "masks", "*")}
    alone = sorted(every - set(used))
    if not alone:
        return []
    return [f"{len(alone)} masks have no image and are left out, such as {alone[0].name}"]
