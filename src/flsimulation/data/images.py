"""Images: one folder for each class, and many images to one array."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flsimulation.data.arrays import Examples, assemble, refusal
from flsimulation.data.dataset import Dataset
from flsimulation.experiment.spec import Data

if TYPE_CHECKING:
    from PIL import Image

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp"}
_GREY = {"1", "L"}


def has_images(folder: Path) -> bool:
    """Whether ``folder`` is laid out as ``CLASS/*.png``, or as ``train/CLASS/*.png``."""
    return any(_files(place) for place in (folder, folder / "train"))


def load_image_folder(folder: Path, spec: Data, seed: int) -> Dataset:
    """Load ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*`` alone.

    Raises
    ------
    DataError
        If an image cannot be read, or the images differ in size.
    """
    parted = bool(_files(folder / "train"))
    train = _files(folder / "train" if parted else folder)
    test = _files(folder / "test") if parted else []
    classes = sorted({path.parent.name for path in train + test})
    x = stack_images(((str(path), _read(path, spec)) for path in train + test), spec)
    y = np.array([classes.index(path.parent.name) for path in train + test])
    size = len(train)
    held_out = Examples(x[size:], y[size:]) if test else None
    return assemble(spec, seed, Examples(x[:size], y[:size]), held_out, classes)


def stack_images(named: Iterable[tuple[str, Image.Image]], spec: Data) -> np.ndarray:
    """Stack images as bytes, uint8 ``[n, h, w]`` if all are grey, else ``[n, h, w, 3]``.

    Parameters
    ----------
    named : iterable of (str, PIL.Image.Image)
        Images, each with the name that an error calls it by.
    """
    images = list(named)
    for name, image in images:
        _check_format(name, image, *images[0], spec)
    mode = "L" if all(image.mode in _GREY for _, image in images) else "RGB"
    return np.stack([np.asarray(image.convert(mode)) for _, image in images])


def _check_format(
    name: str, image: Image.Image, first_name: str, first: Image.Image, spec: Data
) -> None:
    if image.mode[0] in "IF":
        raise refusal(spec, f"{name} has more than 8 bits a pixel; save the images with 8 bits")
    if image.size != first.size:
        raise refusal(
            spec,
            f"images must be of one size, but {first_name} has {_size(first)} pixels and {name} "
            f"{_size(image)}; resize them",
        )


def _read(path: Path, spec: Data) -> Image.Image:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise refusal(spec, f"{path} cannot be read as an image: {error}; remove it") from None


def _size(image: Image.Image) -> str:
    return "x".join(map(str, image.size))


def _files(folder: Path) -> list[Path]:
    """Image files one folder down, in sorted order."""
    found = (path for path in folder.glob("*/*") if not path.parent.name.startswith("."))
    return sorted(path for path in found if path.suffix.lower() in _ENDINGS)
