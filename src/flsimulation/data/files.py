"""``file:PATH``: IDX files, images, CSV or NPZ on this machine."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flsimulation.data.arrays import Examples, Inputs, assemble, refusal
from flsimulation.data.dataset import Dataset
from flsimulation.data.idx import read_idx
from flsimulation.data.images import has_images, load_image_folder
from flsimulation.data.tables import find_table, is_table, load_table
from flsimulation.data.task import About
from flsimulation.experiment.spec import Data

_FOLDER = (
    "a folder must hold the four IDX files (train-images-idx3-ubyte.gz, ...), images as "
    "CLASS/*.png or train/CLASS/*.png, or train.csv and test.csv"
)


def load_file(spec: Data, seed: int) -> Dataset:
    """Load the path behind ``file:``.

    Raises
    ------
    DataError
        If there is nothing at the path, or nothing that can be used.
    """
    path = Path(spec.dataset.removeprefix("file:")).expanduser()
    if path.is_dir():
        return _load_folder(path, spec, seed)
    if not path.is_file():
        raise refusal(spec, "there is no such file or folder; correct the path")
    if is_table(path):
        return load_table(path, None, spec, seed)
    if path.suffix.lower() == ".npz":
        return _load_npz(path, spec, seed)
    raise refusal(
        spec, f"a file must be a .csv, .tsv, .parquet or .npz, got {path.suffix or path.name}"
    )


def load_idx_folder(folder: Path, spec: Data, seed: int, classes: Sequence[str] = ()) -> Dataset:
    """Load the four IDX files of MNIST's naming, gzipped or not."""
    train, test = (
        Examples(*(read_idx(_idx_file(folder, part, kind, spec)) for kind in ("images", "labels")))
        for part in ("train", "t10k")
    )
    return assemble(spec, seed, train, test, classes)


def _load_folder(folder: Path, spec: Data, seed: int) -> Dataset:
    if any(folder.glob("*idx?-ubyte*")):
        return load_idx_folder(folder, spec, seed)
    if train := find_table(folder, "train"):
        return load_table(train, find_table(folder, "test"), spec, seed)
    if has_images(folder):
        return load_image_folder(folder, spec, seed)
    raise refusal(spec, f"there is no data set in the folder; {_FOLDER}")


def _idx_file(folder: Path, part: str, kind: str, spec: Data) -> Path:
    number = 3 if kind == "images" else 1
    names = [f"{part}-{kind}{dot}idx{number}-ubyte" for dot in "-."]
    for name in (f"{name}{end}" for end in ("", ".gz") for name in names):
        if (folder / name).is_file():
            return folder / name
    raise refusal(spec, f"{folder} has no {names[0]} or {names[0]}.gz; add the file")


def _load_npz(path: Path, spec: Data, seed: int) -> Dataset:
    arrays = _read_npz(path, spec)
    if "x_train" in arrays:
        wanted = ("x_train", "y_train", "x_test", "y_test")
        x, y, x_test, y_test = (_named(arrays, (name,), spec) for name in wanted)
        owners = arrays.get("owners_train", arrays.get("owners"))
        about, origin = About("array y_train"), Inputs("x_train", "x_test")
        train, test = Examples(x, y, owners), Examples(x_test, y_test)
        return assemble(spec, seed, train, test, about=about, origin=origin)
    x = _named(arrays, ("x", spec.image_column), spec)
    y = _named(arrays, ("y", spec.label_column), spec)
    owners = arrays.get("owners", arrays.get(spec.partition_column))
    about, origin = About("array y"), Inputs("array x")
    return assemble(spec, seed, Examples(x, y, owners), about=about, origin=origin)


def _read_npz(path: Path, spec: Data) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        raise refusal(spec, f"cannot be read as NPZ: {text}; save it with numpy.savez") from None


def _named(arrays: dict[str, np.ndarray], names: tuple[str, ...], spec: Data) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise refusal(
        spec,
        f"it has no array {' or '.join(map(repr, names))}, only {', '.join(arrays) or 'none'}; "
        f"give x_train, y_train, x_test, y_test, or x and y",
    )
