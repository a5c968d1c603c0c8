"""NPZ files: arrays under the names that people use for inputs and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flsimulation.data.arrays import Examples, Inputs, Parts, refusal
from flsimulation.data.pixels import prepare_images
from flsimulation.data.task import About
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data
from flsimulation.experiment.suggest import did_you_mean, nearest

_FOUR = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("train_x", "train_y", "test_x", "test_y"),
    ("train_data", "train_labels", "test_data", "test_labels"),
    ("images_train", "labels_train", "images_test", "labels_test"),
)
"""Names of the four arrays, in upper or lower case."""
_TWO = (("x", "y"), ("images", "labels"), ("data", "labels"), ("data", "target"))
_OWNERS, _CLASSES = ("owners_train", "owners", "clients"), ("classes", "class_names")
_FORM = "give x_train, y_train, x_test, y_test, or x and y"

Arrays = dict[str, np.ndarray]


def read_npz(path: Path, spec: Data) -> Parts:
    """Read inputs and labels, and where there are any, ``owners`` and ``classes``.

    Raises
    ------
    DataError
        If the file is damaged, arrays hold objects, or inputs or labels are not found.
    """
    arrays = _read(path, spec)
    names = _names(arrays, spec)
    owner = _first(arrays, (*_OWNERS, spec.partition_column))
    classes = _first(arrays, _CLASSES)
    _check_objects({*names, *filter(None, (owner, classes))}, arrays, spec)
    x, *tests = (prepare_images(arrays[name]) for name in names[::2])
    owners = None if owner is None else arrays[owner]
    train = Examples(x[0], arrays[names[1]], owners)
    test = Examples(tests[0][0], arrays[names[3]]) if tests else None
    known = () if classes is None else tuple(map(str, arrays[classes].ravel()))
    notes = (*x[1], *_notes(arrays, names, owner, classes))
    origin = Inputs(f"array {names[0]}", f"array {names[-2]}", notes=notes)
    return Parts(spec, train, test, known, About(f"array {names[1]}"), origin)


def _read(path: Path, spec: Data) -> Arrays:
    """Read all arrays; one of Python objects is only marked, by the dtype ``object``."""
    try:
        # opened here: NumPy leaves a file open that is no archive
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: _array(file, name) for name in file.files}
    except Exception as error:  # damaged files cause a dozen kinds, MemoryError among them
        text = " ".join(str(error).split())
        raise refusal(spec, f"cannot be read as NPZ: {text}; save it with numpy.savez") from None


def _array(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array: np.ndarray = file[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        return np.empty(0, object)
    return array


def _names(arrays: Arrays, spec: Data) -> tuple[str, ...]:
    """Names of inputs and labels: two, or four with the test set."""
    folded = {name.casefold(): name for name in reversed([*arrays])}
    for four in _FOUR:
        if all(name in folded for name in four):
            return tuple(folded[name] for name in four)
    begun = next((four for four in _FOUR if four[0] in folded), None)
    if begun is not None:
        others = [own for name, own in folded.items() if name not in begun]
        absent = next(name for name in begun if name not in folded)
        raise _absent(arrays, absent, spec, nearest(absent, others))
    pairs = [pair for pair in _TWO if all(name in folded for name in pair)]
    x = _own(arrays, spec.image_column) or (folded[pairs[0][0]] if pairs else folded.get("x"))
    y = _own(arrays, spec.label_column) or (folded[pairs[0][1]] if pairs else folded.get("y"))
    if x is None:
        raise _absent(arrays, f"x' or '{spec.image_column}", spec, key="data.image-column")
    if y is None:
        raise _absent(arrays, f"y' or '{spec.label_column}", spec, key="data.label-column")
    return (x, y)


def _own(arrays: Arrays, name: str) -> str | None:
    return name if name in arrays else None


def _absent(
    arrays: Arrays, name: str, spec: Data, near: str | None = None, key: str = ""
) -> DataError:
    remedy = f"{_FORM}, or name it in {key}" if key else _FORM
    return refusal(
        spec,
        f"it has no array '{name}', only {', '.join(arrays) or 'none'}; {remedy}{did_you_mean(near)}",
    )


def _first(arrays: Arrays, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in arrays), None)


def _check_objects(names: set[str], arrays: Arrays, spec: Data) -> None:
    for name in sorted(names):
        if arrays[name].dtype.kind == "O":
            raise refusal(
                spec,
                f"array {name!r} holds Python objects, which are not read: rows of several lengths, "
                f"None or words; save it with one shape (numpy.stack), or words with .astype(str)",
            )


def _notes(
    arrays: Arrays, names: tuple[str, ...], owner: str | None, classes: str | None
) -> list[str]:
    """Which arrays were taken, where their names leave room for doubt, and which were not."""
    lines = []
    if names[0] not in ("x", "x_train"):
        lines.append(f"arrays: inputs {names[0]}, labels {names[1]}")
    unused = [name for name in arrays if name not in (*names, owner, classes)]
    if unused:
        lines.append(f"arrays that are not used: {', '.join(unused)}")
    return lines
