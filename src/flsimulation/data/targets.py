"""From labels as a source has them to the targets of their task."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from flsimulation.data.refusal import refusal
from flsimulation.data.task import (
    IGNORED,
    About,
    Decision,
    Form,
    decide,
    is_hot,
    is_whole,
)
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

_SHOWN = 8  # names of classes in a note


class Targets(NamedTuple):
    """Targets of the training and of the test set, and what they are."""

    train: torch.Tensor
    """int64 for classes, pixels and tokens, float32 for numbers and several classes."""
    test: torch.Tensor
    task: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def make_targets(
    spec: Data, train: np.ndarray, test: np.ndarray, form: Form, about: About
) -> Targets:
    """Convert labels, [n, ...] each, to the targets of ``data.task``.

    Raises
    ------
    DataError
        If they cannot be labels of that task, or ``auto`` cannot tell the task.
    """
    labels = _joined(spec, train, test, about)
    decision = decide(spec, labels, form, about)
    converted, classes = _CONVERSIONS[decision.task](spec, labels, about)
    if decision.task == "classification" and about.files:
        _check_unseen(spec, labels[: len(train)], labels[len(train) :], about.files)
    targets = torch.from_numpy(np.ascontiguousarray(converted))
    notes = () if about.quiet else (_note(decision, converted, classes),)
    first, second = targets[: len(train)].clone(), targets[len(train) :].clone()
    return Targets(first, second, decision.task, classes, notes)


def refuse_labels(spec: Data, about: About, problem: str) -> DataError:
    """Make the error that names the data set and its labels."""
    return refusal(spec, f"{about.label}: {problem}")


def _joined(spec: Data, train: np.ndarray, test: np.ndarray, about: About) -> np.ndarray:
    if train.shape[1:] != test.shape[1:]:
        raise refusal(
            spec,
            f"training labels have shape {list(train.shape[1:])} "
            f"each, test labels {list(test.shape[1:])}; give them one shape",
        )
    for part in (train, test):
        _check_kind(spec, part, about)
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise refuse_labels(
            spec, about, "words in one of training and test set, numbers in the other; use one"
        )
    joined = np.concatenate([train, test])
    if joined.ndim == 2 and joined.shape[1] == 1 and joined.dtype.kind != "f":
        joined = joined[:, 0]
    return joined


def _check_kind(spec: Data, labels: np.ndarray, about: About) -> None:
    """Refuse labels that are missing or no labels at all."""
    if labels.dtype.kind not in "biufU" or (labels.dtype.kind == "U" and labels.ndim > 1):
        raise refusal(
            spec,
            f"labels must be integers, floats or words of one "
            f"shape, got {labels.dtype}; check data.label-column",
        )
    if labels.dtype.kind != "f" or np.isfinite(labels).all():
        return
    if missing := int(np.isnan(labels).sum()):
        raise refusal(spec, f"{missing} labels are missing; fill them, or remove their rows")
    raise _infinite(spec, labels, about)


def _infinite(spec: Data, labels: np.ndarray, about: About, form: str = "") -> DataError:
    place = tuple(map(int, np.argwhere(np.isinf(labels))[0]))
    at = place[0] if len(place) == 1 else list(place)
    return refuse_labels(
        spec, about, f"{labels[place]:g} at index {at}{form}; labels must be finite"
    )


def _to_classes(spec: Data, labels: np.ndarray, about: About) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.ndim == 2:
        return _from_one_hot(spec, labels, about)
    _need("classification", labels.ndim == 1, about, "one class per example", labels)
    if labels.dtype.kind == "U":
        return _from_words(spec, labels, about)
    numbers = _whole("classification", labels, about)
    if not about.classes and not about.numbered:
        values, numbers = np.unique(labels, return_inverse=True)
        return numbers.astype(np.int64), tuple(_name(value) for value in values)
    most = max(0, int(numbers.max()))
    classes = about.classes or tuple(str(number) for number in range(most + 1))
    check_range(spec, numbers, len(classes))
    return numbers, classes


def _name(value: np.generic) -> str:
    """Name of a class: 1.0 is ``1``."""
    return str(int(value) if value.dtype.kind == "f" else value)


def _from_one_hot(
    spec: Data, labels: np.ndarray, about: About
) -> tuple[np.ndarray, tuple[str, ...]]:
    one = is_hot(labels) and bool((labels.sum(axis=1) == 1).all())
    _need("classification", one, about, "one class per example, or rows with one 1", labels)
    return labels.argmax(axis=1).astype(np.int64), _columns_of(spec, labels, about)


def _from_words(spec: Data, labels: np.ndarray, about: About) -> tuple[np.ndarray, tuple[str, ...]]:
    if not about.classes:
        values, numbers = np.unique(labels, return_inverse=True)
        return numbers.astype(np.int64), tuple(map(str, values))
    index = {name: number for number, name in enumerate(about.classes)}
    unknown = next((word for word in labels.tolist() if word not in index), None)
    if unknown is not None:
        raise refuse_labels(
            spec, about, f"{unknown!r} is none of its classes {', '.join(about.classes)}; add it"
        )
    return np.array([index[word] for word in labels.tolist()], np.int64), about.classes


def _to_numbers(spec: Data, labels: np.ndarray, about: About) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.dtype.kind == "U":
        raise DataError(
            f"data.task 'regression' needs numbers, but {about.label} has the word "
            f"{_first_word(labels)!r}; correct it, or set data.task = 'classification'"
        )
    with np.errstate(over="ignore"):
        numbers = labels.astype(np.float32)
    if np.isinf(numbers).any():
        raise _infinite(spec, numbers, about, " as float32")
    return numbers, ()


def _to_rows(spec: Data, labels: np.ndarray, about: About) -> tuple[np.ndarray, tuple[str, ...]]:
    hot = labels.ndim == 2 and labels.dtype.kind != "U" and is_hot(labels)
    _need("multilabel", hot, about, "rows of 0 and 1, one number per class", labels)
    return labels.astype(np.float32), _columns_of(spec, labels, about)


def _to_positions(
    spec: Data, labels: np.ndarray, about: About
) -> tuple[np.ndarray, tuple[str, ...]]:
    wanted = "one class per pixel" if spec.task == "segmentation" else "one token per position"
    _need(spec.task, labels.ndim >= 2 and labels.dtype.kind != "U", about, wanted, labels)
    numbers = _whole(spec.task, labels, about)
    used = numbers[numbers != IGNORED]
    if about.classes:
        check_range(spec, used, len(about.classes), f", or {IGNORED} to be ignored")
    elif used.size and used.min() < 0:
        raise refuse_labels(
            spec, about, f"{used.min()} is no class; use {IGNORED} for what is to be ignored"
        )
    return numbers, about.classes


_CONVERSIONS = {
    "classification": _to_classes,
    "regression": _to_numbers,
    "multilabel": _to_rows,
    "segmentation": _to_positions,
    "language": _to_positions,
}


def _check_unseen(spec: Data, train: np.ndarray, test: np.ndarray, files: tuple[str, str]) -> None:
    """Refuse labels of the test file that no training example has."""
    unseen = ~np.isin(test, train)
    if unseen.any():
        row = int(np.argmax(unseen))
        raise refusal(
            spec,
            f"{files[1]} has the label {str(test[row])!r} in row {row + 1}, which {files[0]} does "
            f"not have; correct it, or add rows of it to {files[0]}",
        )


def check_range(spec: Data, labels: np.ndarray, classes: int, further: str = "") -> None:
    """Refuse labels that are no number of a class."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise refusal(
            spec,
            f"labels must be in 0..{classes - 1}, its classes"
            f"{further}, got {wrong.flat[0]}; number them so",
        )


def _columns_of(spec: Data, labels: np.ndarray, about: About) -> tuple[str, ...]:
    width = labels.shape[1]
    if about.classes and len(about.classes) != width:
        raise refuse_labels(
            spec, about, f"rows of {width} but {len(about.classes)} classes; name {width}"
        )
    return about.classes or tuple(str(number) for number in range(width))


def _whole(task: str, labels: np.ndarray, about: About) -> np.ndarray:
    if not is_whole(labels):
        odd = labels[labels != np.floor(labels)].flat[0]
        remedy = "; set data.task = 'regression'" if labels.ndim == 1 else "; use integers"
        raise DataError(
            f"data.task {task!r} needs words or whole numbers, but {about.label} has {odd:g}{remedy}"
        )
    if labels.dtype.kind != "b" and (large := labels[(labels >= 2**63) | (labels < -(2**63))]).size:
        raise DataError(
            f"data.task {task!r} numbers its classes from 0 on, but {about.label} has "
            f"{large.flat[0]:g}; number them so, or set data.task = 'regression'"
        )
    return labels.astype(np.int64)


def _need(task: str, met: bool, about: About, wanted: str, labels: np.ndarray) -> None:
    if not met:
        kind = "word" if labels.dtype.kind == "U" else "number"
        size = " x ".join(map(str, labels.shape[1:])) or "one"
        raise DataError(
            f"data.task {task!r} needs {wanted}, but {about.label} has {size} {kind}"
            f"{'s' if labels.ndim > 1 else ''} per example; set data.task to what it is, or 'auto'"
        )


def _first_word(labels: np.ndarray) -> str:
    """First label that is no number, if any is not."""
    words = labels.ravel().tolist()
    return str(next((word for word in words if not _is_number(word)), words[0]))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _note(decision: Decision, labels: np.ndarray, classes: tuple[str, ...]) -> str:
    why = f" (data.task auto: {decision.why})" if decision.why else ""
    return f"labels: {_what(decision.task, labels, classes)}{why}"


def _what(task: str, labels: np.ndarray, classes: tuple[str, ...]) -> str:
    if task == "classification":
        return f"{len(classes)} class{'es' if len(classes) != 1 else ''} {shortened(classes)}"
    if task == "regression":
        low, high, mean = labels.min(), labels.max(), labels.mean(dtype=np.float64)
        return f"regression, {low:,.6g} to {high:,.6g}, mean {mean:,.6g}"
    if task == "multilabel":
        return f"multilabel, {len(classes)} class{'es' if len(classes) != 1 else ''}, {labels.sum(axis=1).mean():.3g} per example"
    return f"{task}, {' x '.join(map(str, labels.shape[1:]))} integers per example"


def shortened(names: tuple[str, ...]) -> str:
    """Names for a note: all, or the first ones and the last, in one line."""
    names = tuple(" ".join(name.split()) for name in names)
    if len(names) <= _SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[: _SHOWN - 1])}, ... {names[-1]}"
