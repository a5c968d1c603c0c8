"""What one site's labels are: names of classes, which mean the same at every site, or numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from flsimulation.data.refusal import counted
from flsimulation.data.sites.raw import Raw
from flsimulation.data.targets import check_range, make_targets
from flsimulation.data.task import About, Form, decide, has_positions
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


class Labels(NamedTuple):
    """One site's labels."""

    task: str
    """As ``data.task``; never ``auto``."""
    names: np.ndarray | None = None
    """Name of each example's class, str [n]; None if the task is no classification."""
    targets: torch.Tensor | None = None
    """Targets of the other tasks, [n, ...]."""
    classes: tuple[str, ...] = ()
    """Class names that the site has or its source lists, in the order of numbers or of words."""


def labels_of(raw: Raw, spec: Data) -> Labels:
    """Understand a site's labels.

    Raises
    ------
    DataError
        If they cannot be labels of ``data.task``, if ``auto`` cannot tell the task, or if one is
        none of ``data.classes``.
    """
    known = tuple(spec.classes) or raw.classes
    form = _form(raw)
    about = raw.about._replace(classes=known if raw.labels.ndim == 1 else ())
    task = decide(spec, raw.labels, form, about).task
    if task == "classification" and not _is_share(raw.labels):
        return _classification(raw, spec)
    _check_numbers(raw.classes, spec)
    asked = spec.model_copy(update={"task": task})
    none = raw.labels[:0]
    quiet = About(raw.about.label, known if task != "regression" else (), True, quiet=True)
    targets = make_targets(asked, raw.labels, none, form, quiet)
    return Labels(task, None, targets.train, targets.classes)


def in_order(names: set[str]) -> tuple[str, ...]:
    """Names of classes in the order of their numbers, where all are numbers, else of words."""
    if all(_is_integer(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _check_numbers(own: tuple[str, ...], spec: Data) -> None:
    """Refuse a source whose classes are in another order, where labels are the classes' numbers."""
    numbers = tuple(map(str, range(len(own))))
    if spec.classes and own not in (numbers, tuple(spec.classes[: len(own)])):
        raise DataError(
            f"its classes are {', '.join(own)}, in this order, but data.classes {', '.join(spec.classes)}; "
            f"number them alike"
        )


def _form(raw: Raw) -> Form:
    """Form of the inputs whose tokens or pixels have labels, else of the first ones."""
    forms = [Form(tuple(x.shape), not x.is_floating_point()) for x in raw.tensors.values()]
    fitting = (form for form in forms if has_positions(raw.labels, form))
    return next(fitting, forms[0] if forms else Form((len(raw.labels), len(raw.columns)), False))


def _is_share(labels: np.ndarray) -> bool:
    """Whether labels are rows of shares of the classes, which have no one name."""
    return labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind == "f"


def _classification(raw: Raw, spec: Data) -> Labels:
    names = _names(raw, spec)
    present = set(np.unique(names).tolist())
    if not spec.classes:
        listed = raw.classes or (_numbers(names) if raw.about.numbered else in_order(present))
        return Labels("classification", names, None, listed)
    unknown = np.isin(names, spec.classes, invert=True)
    if unknown.any():
        raise DataError(
            f"{raw.about.label} has {str(names[unknown][0])!r} in {counted(int(unknown.sum()), 'row')}, "
            f"which is none of data.classes ({', '.join(spec.classes)}); rename it there, or add it"
        )
    return Labels("classification", names, None, tuple(spec.classes))


def _numbers(names: np.ndarray) -> tuple[str, ...]:
    """Names of the classes 0 to the largest number, of labels that are their numbers."""
    if not all(_is_integer(name) for name in np.unique(names).tolist()):
        return in_order(set(np.unique(names).tolist()))
    return tuple(map(str, range(max(map(int, np.unique(names).tolist())) + 1)))


def _names(raw: Raw, spec: Data) -> np.ndarray:
    """Name of each example's class, str [n]."""
    labels = raw.labels
    if labels.ndim == 2:  # rows with one 1
        labels = labels.argmax(axis=1) if labels.shape[1] > 1 else labels[:, 0]
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.floor(labels)):
        raise DataError(
            f"{raw.about.label} has numbers with fractions; set data.task = 'regression', or name "
            f"another data.label-column"
        )
    numbers = labels.astype(np.int64)
    if raw.classes:
        check_range(spec, numbers, len(raw.classes))
        return np.array(raw.classes)[numbers]
    if spec.classes and not all(map(_is_integer, spec.classes)):
        if raw.about.table:  # where 0 may well be the second class
            raise DataError(
                f"{raw.about.label} has numbers, but data.classes are words "
                f"({', '.join(spec.classes[:5])}); write the classes' names there"
            )
        check_range(spec, numbers, len(spec.classes), f" ({', '.join(spec.classes)})")
        return np.array(spec.classes)[numbers]
    return numbers.astype(np.str_)


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal()
