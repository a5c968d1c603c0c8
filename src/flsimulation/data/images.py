"""A folder of images: one folder for each class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flsimulation.data.arrays import Examples, Inputs, Parts, refusal
from flsimulation.data.pictures import Picture, stack_pictures
from flsimulation.data.pixels import scale_deep
from flsimulation.data.task import About
from flsimulation.experiment.spec import Data

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
TEST = ("test", "validation", "valid", "val")
"""Names of a folder with a test set, the first that is there."""
_LITTER = {"thumbs.db", "desktop.ini"}


def has_images(folder: Path) -> bool:
    """Whether ``folder`` is laid out as ``CLASS/*.png``, or as ``train/CLASS/*.png``."""
    return any(_files(place) for place in (folder, folder / "train"))


def read_image_folder(folder: Path, spec: Data) -> Parts:
    """Read ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*`` alone.

    Raises
    ------
    DataError
        If an image cannot be read, or the images differ in size.
    """
    parts = split_folders(folder)
    train, *rest = [_files(part) for part in parts]
    test = rest[0] if rest else []
    classes = sorted({path.parent.name for path in train + test})
    numbers = _labels(classes, spec)
    x, line = read_images(train + test, spec)
    y = np.array([numbers[path.parent.name] for path in train + test])
    size = len(train)
    held_out = Examples(x[size:], y[size:]) if test else None
    notes = (line, *_left_out(folder, parts), *_one_sided(train, test, classes))
    known = () if spec.task == "regression" else tuple(classes)
    origin = Inputs("images", "test images", notes=notes)
    examples = Examples(x[:size], y[:size])
    return Parts(spec, examples, held_out, known, About("the folders' names"), origin)


def _labels(classes: Sequence[str], spec: Data) -> dict[str, float]:
    """Label of each folder: the number of its class, or, for a regression, the number in its name."""
    if spec.task != "regression":
        return {name: number for number, name in enumerate(classes)}
    try:
        return {name: float(name) for name in classes}
    except ValueError as error:
        raise refusal(
            spec,
            f"data.task 'regression' needs folders whose names are numbers: {error}; remove the key",
        ) from None


def split_folders(folder: Path) -> list[Path]:
    """Folder of the training set and, where there is one, that of the test set."""
    if not any(image_files(folder / "train", "*/*")):
        return [folder]
    tests = (folder / name for name in TEST)
    found = next((test for test in tests if any(image_files(test, "*/*"))), None)
    return [folder / "train"] if found is None else [folder / "train", found]


def read_images(paths: Sequence[Path], spec: Data) -> tuple[np.ndarray, str]:
    """Stack the images of these files; those of 16 bits become float32. Also returns the note."""
    return floats_if_deep(*stack_pictures([of_file(path) for path in paths], spec))


def floats_if_deep(array: np.ndarray, line: str) -> tuple[np.ndarray, str]:
    """Pixels that are no bytes as float32 in 0..1, the channels first."""
    if array.dtype == np.uint16:
        return scale_deep(array), line
    if array.dtype == np.float32:
        return array[:, None] if array.ndim == 3 else np.moveaxis(array, -1, 1), line
    return array, line


def of_file(path: Path) -> Picture:
    """Make the picture of a file."""

    def open_file() -> Image.Image:
        from PIL import Image

        return Image.open(path)

    return Picture(str(path), open_file)


def image_files(folder: Path, pattern: str) -> list[Path]:
    """Files of images that match, in sorted order, none in a hidden folder."""
    found = (p for p in folder.glob(pattern) if not (p.name.startswith(".") or p.is_dir()))
    return sorted(
        p for p in found if p.suffix.lower() in ENDINGS and not p.parent.name.startswith(".")
    )


def _files(folder: Path) -> list[Path]:
    """Image files one folder down, in sorted order."""
    return image_files(folder, "*/*")


def _left_out(folder: Path, parts: Sequence[Path]) -> list[str]:
    """Lines on files and folders that hold no example."""
    lines = []
    places = [folder, *(part for part in parts if part != folder)]
    others = [path for place in places for path in _others(place, deep=place in parts)]
    if others:
        lines.append(
            f"{len(others)} file{'s are no images and are' if len(others) > 1 else ' is no image and is'} "
            f"left out, such as {others[0].relative_to(folder)}"
        )
    for part in parts:
        lines += _odd_folders(folder, part)
    if parts != [folder]:
        unused = [d.name for d in _folders(folder) if d not in parts]
        lines += [f"beside train, the folder {name} is not used" for name in unused]
    return lines


def _others(place: Path, *, deep: bool) -> list[Path]:
    """Files that are not images, and images that lie in no folder of a class."""
    inside = [path for d in _folders(place) for path in sorted(d.iterdir())] if deep else []
    direct = [path for path in sorted(place.iterdir()) if path.is_file()]
    return [path for path in direct if _counts(path)] + [
        path for path in inside if _counts(path) and path.suffix.lower() not in ENDINGS
    ]


def _counts(path: Path) -> bool:
    hidden = path.name.startswith(".") or path.name.lower() in _LITTER
    return path.is_file() and not hidden


def _folders(place: Path) -> list[Path]:
    return sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def _odd_folders(folder: Path, part: Path) -> list[str]:
    """Lines on folders without images, and on images one folder too deep."""
    lines = []
    for place in _folders(part):
        name = place.relative_to(folder)
        if deeper := image_files(place, "*/**/*"):
            lines.append(
                f"images in folders of {name}/ are not used: {len(deeper)}, such as "
                f"{deeper[0].relative_to(folder)}; move them up"
            )
        elif not image_files(place, "*"):
            lines.append(f"the folder {name}/ has no images; it is no class")
    return lines


def _one_sided(train: Sequence[Path], test: Sequence[Path], classes: Iterable[str]) -> list[str]:
    """Lines on classes of which one of training and test set has no image."""
    if not test:
        return []
    lines = []
    for part, paths in (("training", train), ("test", test)):
        absent = sorted(set(classes) - {path.parent.name for path in paths})
        if absent:
            lines.append(f"the {part} set has no image of {', '.join(absent)}")
    return lines
