"""``file:PATH``: IDX files, images, CSV or NPZ on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flsimulation.data.arrays import Examples, Parts, refusal
from flsimulation.data.dataset import Dataset
from flsimulation.data.idx import read_idx
from flsimulation.data.images import has_images, image_files, read_image_folder
from flsimulation.data.masks import has_masks, read_mask_folder
from flsimulation.data.npz import read_npz
from flsimulation.data.tables import find_table, is_table, load_table
from flsimulation.experiment.spec import Data

_IDX = "*idx?-ubyte*"
_FOLDER = (
    "a folder must hold the four IDX files (train-images-idx3-ubyte.gz, ...), images as "
    "CLASS/*.png or train/CLASS/*.png, images/*.png with masks/*.png, or train.csv and test.csv"
)


def load_file(spec: Data, seed: int) -> Dataset:
    """Load the path behind ``file:``.

    Raises
    ------
    DataError
        If there is nothing at the path, or nothing that can be used.
    """
    path = Path(spec.dataset.removeprefix("file:")).expanduser()
    if (table := table_at(path)) is not None:
        test = find_table(path, "test") if path.is_dir() else None
        return load_table(table, test, spec, seed)
    return read_parts(path, spec).assembled(seed)


def table_at(path: Path) -> Path | None:
    """The training table that a path is, or that its folder holds; None if it is other data."""
    if path.is_dir():
        return None if any(path.glob(_IDX)) else find_table(path, "train")
    return path if path.is_file() and is_table(path) else None


def read_parts(path: Path, spec: Data) -> Parts:
    """Read a path that is no table.

    Raises
    ------
    DataError
        As of `load_file`.
    """
    if path.is_dir():
        return _read_folder(path, spec)
    if not path.is_file():
        raise refusal(spec, "there is no such file or folder; correct the path")
    if path.suffix.lower() == ".npz":
        return read_npz(path, spec)
    raise refusal(
        spec, f"a file must be a .csv, .tsv, .parquet or .npz, got {path.suffix or path.name}"
    )


def read_idx_folder(folder: Path, spec: Data, classes: Sequence[str] = ()) -> Parts:
    """Read the four IDX files of MNIST's naming, gzipped or not."""
    train, test = (
        Examples(*(read_idx(_idx_file(folder, part, kind, spec)) for kind in ("images", "labels")))
        for part in ("train", "t10k")
    )
    return Parts(spec, train, test, tuple(classes))


def _read_folder(folder: Path, spec: Data) -> Parts:
    if any(folder.glob(_IDX)):
        return read_idx_folder(folder, spec)
    if has_masks(folder) and spec.task in ("auto", "segmentation"):
        return read_mask_folder(folder, spec)
    if has_images(folder):
        return read_image_folder(folder, spec)
    if flat := image_files(folder, "*"):
        raise refusal(
            spec,
            f"{len(flat)} images lie in the folder itself, which does not say their classes; move "
            f"them into one folder for each class",
        )
    raise refusal(spec, f"there is no data set in the folder; {_FOLDER}")


def _idx_file(folder: Path, part: str, kind: str, spec: Data) -> Path:
    number = 3 if kind == "images" else 1
    names = [f"{part}-{kind}{dot}idx{number}-ubyte" for dot in "-."]
    for name in (f"{name}{end}" for end in ("", ".gz") for name in names):
        if (folder / name).is_file():
            return folder / name
    raise refusal(spec, f"{folder} has no {names[0]} or {names[0]}.gz; add the file")
