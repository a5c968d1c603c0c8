"""What the labels are: ``data.task``, decided by the labels where it is ``auto``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

IGNORED = -100
"""Label of a pixel or token that counts nowhere, as in PyTorch's cross-entropy."""
_FEW = 20  # up to this number of whole numbers are classes, unless they hardly repeat
_VERY_FEW = 10  # up to this number integers and words are classes even if none repeats
_REPEATS = 5  # examples per class of many classes, on average
_FAR = 10  # times the number of examples: a range in which whole numbers are measurements
_ROUNDING = 1e-3  # by which a row of probabilities may miss 1


class About(NamedTuple):
    """What a source knows of its labels, and what it calls them."""

    label: str = "labels"
    """Name of the labels in notes and errors, for example ``column 'price' of houses.csv``."""
    classes: tuple[str, ...] = ()
    """Names of the classes, where the source has them; labels are then their numbers or names."""
    numbered: bool = False
    """Whether integers are numbers of classes already, and are not numbered in sorted order."""
    table: bool = False
    """Whether the labels are a column of a table of numbers, where counts and prices occur."""
    files: tuple[str, str] | None = None
    """Training and test file, where a class that occurs only in the test file is a mistake."""
    quiet: bool = False
    """Whether the data set is so well known that no note is needed."""


class Form(NamedTuple):
    """Shape and type of the inputs, by which pixels and tokens are recognised."""

    shape: tuple[int, ...]
    integers: bool


class Decision(NamedTuple):
    """A task, and why ``auto`` decided for it."""

    task: str
    why: str


def decide(spec: Data, labels: np.ndarray, form: Form, about: About) -> Decision:
    """Decide what the labels of the training and test set, [n, ...], are.

    Raises
    ------
    DataError
        If they may be several tasks.
    """
    if spec.task != "auto":
        return Decision(spec.task, "")
    if labels.ndim == 1:
        return _of_one_label(labels, about)
    if has_positions(labels, form):
        return _positions(labels)
    if labels.ndim == 2 and (rows := _of_rows(labels)):
        return rows
    if labels.dtype.kind == "f":
        return Decision("regression", f"{_size(labels)} numbers per example")
    raise DataError(
        f"data.task 'auto' cannot tell what {about.label} with {_size(labels)} integers per example "
        f"are, beside inputs of shape {list(form.shape[1:])}; set data.task to 'regression' or "
        f"{'language' if labels.ndim == 2 else 'segmentation'!r}"
    )


def is_hot(labels: np.ndarray) -> bool:
    """Whether all numbers are 0 or 1."""
    return bool(((labels == 0) | (labels == 1)).all())


def is_whole(labels: np.ndarray) -> bool:
    """Whether all numbers are whole."""
    return labels.dtype.kind != "f" or bool((labels == np.floor(labels)).all())


def _of_one_label(labels: np.ndarray, about: About) -> Decision:
    if labels.dtype.kind == "b":
        return Decision("classification", "true or false")
    if about.classes:
        return Decision("classification", "")
    if labels.dtype.kind == "U":
        return _of_words(labels, about)
    if not is_whole(labels):
        return Decision("regression", "numbers with fractions")
    return _of_whole_numbers(labels, about)


def _of_words(labels: np.ndarray, about: About) -> Decision:
    distinct = len(np.unique(labels))
    if distinct > max(_VERY_FEW, len(labels) / 2):
        raise _question(about, distinct, "words", labels, "'classification' if each is a class")
    return Decision("classification", "words")


def _of_whole_numbers(labels: np.ndarray, about: About) -> Decision:
    values = np.unique(labels)
    distinct, examples = len(values), len(labels)
    reach = int(values[-1]) - int(values[0]) + 1
    counted = f"{distinct:,} distinct whole numbers of {examples:,}"
    if distinct > 2 and reach >= _FAR * examples and _hardly_repeats(distinct, examples):
        return Decision("regression", f"{counted}, far apart")
    always = 0 if labels.dtype.kind == "f" else _VERY_FEW
    if distinct <= _FEW and distinct <= max(always, examples / 2):
        stored = ", stored as floats" if labels.dtype.kind == "f" else ""
        return Decision("classification", f"{distinct} distinct whole numbers{stored}")
    if _is_count_of_classes(values, examples, about):
        return Decision(
            "classification", f"whole numbers {values[0]:g} to {values[-1]:g}, each used"
        )
    if labels.dtype.kind == "f":
        return Decision("regression", f"{counted}, stored as floats")
    raise _question(about, distinct, "whole numbers", labels, "'regression' or 'classification'")


def _hardly_repeats(distinct: int, examples: int) -> bool:
    return distinct > examples / 2 or (distinct > _FEW and distinct >= examples / 20)


def _is_count_of_classes(values: np.ndarray, examples: int, about: About) -> bool:
    """Whether many whole numbers count classes 0, 1, ... or 1, 2, ..., each with some examples."""
    used = len(values) / (int(values[-1]) + 1 - min(1, int(values[0])))
    enough = used >= (1.0 if about.table else 0.9) and examples >= _REPEATS * len(values)
    return values[0] >= 0 and enough


def _question(about: About, distinct: int, kind: str, labels: np.ndarray, tasks: str) -> DataError:
    other = ", or name another data.label-column" if about.label.startswith("column") else ""
    return DataError(
        f"data.task 'auto' cannot tell what {about.label} is: it has {distinct:,} distinct {kind} in "
        f"{len(labels):,} examples (such as {labels[0]}); set data.task to {tasks}{other}"
    )


def has_positions(labels: np.ndarray, form: Form) -> bool:
    """Whether each pixel or each token of the inputs has a label, [n, ...]."""
    if labels.ndim < 2 or labels.dtype.kind not in "biu":
        return False
    if labels.ndim == 2:
        return form.integers and form.shape[1:] == labels.shape[1:]
    one = labels.ndim == 3 or (labels.ndim == 4 and labels.shape[1] == 1)  # [n, 1, h, w], too
    return one and labels.shape[-2:] in (form.shape[-2:], form.shape[1:3])


def _positions(labels: np.ndarray) -> Decision:
    if labels.ndim == 2:
        return Decision("language", "an integer for each input integer")
    return Decision("segmentation", "an integer for each pixel")


def _of_rows(labels: np.ndarray) -> Decision | None:
    """Rows of 0 and 1, or of probabilities."""
    if is_hot(labels):
        one = labels.shape[1] > 1 and bool((labels.sum(axis=1) == 1).all())
        rows = Decision("classification", "rows with one 1")
        return rows if one else Decision("multilabel", "rows of 0 and 1")
    sums = abs(labels.sum(axis=1) - 1) <= _ROUNDING
    if labels.dtype.kind == "f" and labels.shape[1] > 1 and (labels >= 0).all() and sums.all():
        return Decision("regression", "probabilities: rows that sum to 1")
    return None


def _size(labels: np.ndarray) -> str:
    return " x ".join(map(str, labels.shape[1:]))
