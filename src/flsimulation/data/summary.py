"""What a data set holds, as numbers for people: the command ``flsim data`` prints them."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch

from flsimulation.data.dataset import Column, Dataset
from flsimulation.data.leaves import named
from flsimulation.data.pixels import CHANNELS

Summary: TypeAlias = dict[str, Any]
"""Plain values, as for JSON."""


def kind_of(dataset: Dataset, x: torch.Tensor) -> str:
    """Kind of inputs: ``images``, ``tokens``, ``table`` or ``array``, by type and shape."""
    if dataset.columns:
        return "table"
    if not x.is_floating_point():
        return "tokens"
    if x.ndim == 4 and x.shape[1] in CHANNELS:
        return "images"
    return "table" if x.ndim <= 2 else "array"


def summarize(dataset: Dataset) -> Summary:
    """Describe a data set; counts and statistics are of the training set if not named otherwise.

    Returns
    -------
    dict
        ``name``, ``train``, ``test``, ``task``, ``inputs`` (a list, as inputs may be several) and
        ``notes``; where it applies ``classes``, ``target``, ``masks`` and ``clients``.
    """
    summary: Summary = {
        "name": dataset.name,
        "train": len(dataset.y_train),
        "test": len(dataset.y_test),
        "task": dataset.task,
        "inputs": [_inputs(dataset, name, x) for name, x in named(dataset.x_train)],
    }
    summary |= _labels(dataset)
    if dataset.owners is not None:
        _, sizes = np.unique(dataset.owners, return_counts=True)
        summary["clients"] = {
            "number": len(sizes), "smallest": int(sizes.min()), "largest": int(sizes.max()),
        }  # fmt: skip
    return {**summary, "notes": list(dataset.notes)}


def _inputs(dataset: Dataset, name: str, x: torch.Tensor) -> Summary:
    """Describe one tensor of inputs: ``columns``, ``tokens``, or ``values`` and ``constant``."""
    about: Summary = {"name": name, "kind": kind_of(dataset, x), "shape": list(x.shape[1:])}
    if about["kind"] == "table":
        return {**about, "columns": _columns(dataset, x)}
    if about["kind"] == "tokens":
        return {**about, "tokens": _tokens(x)}
    return {**about, "values": statistics(x), "constant": _constant(x)}


def statistics(values: torch.Tensor) -> dict[str, float]:
    """Least, mean, greatest value and standard deviation."""
    array = values.numpy()
    return {
        "min": float(array.min()),
        "mean": float(array.mean(dtype=np.float64)),
        "max": float(array.max()),
        "sd": float(array.std(dtype=np.float64)),
    }


def spans(dataset: Dataset, x: torch.Tensor) -> list[tuple[Column, slice]]:
    """Columns of a table, and which inputs each became."""
    width = math.prod(x.shape[1:])
    kind = "number" if x.is_floating_point() else "integer"
    columns = dataset.columns or tuple(Column(str(i), kind) for i in range(width))
    found, start = [], 0
    for column in columns:
        found.append((column, slice(start, start + column.width)))
        start += column.width
    return found


def _columns(dataset: Dataset, x: torch.Tensor) -> list[Summary]:
    flat = x.reshape(len(x), -1)
    return [_column(column, flat[:, span].numpy()) for column, span in spans(dataset, x)]


def _column(column: Column, x: np.ndarray) -> Summary:
    """Describe one column, whose inputs are [n, width]."""
    about: Summary = {"name": column.name, "type": column.kind, "missing": column.missing}
    if column.kind == "category" or x.shape[1] != 1:
        return {
            **about,
            "distinct": int(x.any(axis=0).sum()),
            "min": None,
            "mean": None,
            "max": None,
        }
    values = x[:, 0]
    return {
        **about,
        "distinct": len(np.unique(values)),
        "min": float(values.min()),
        "mean": float(values.mean(dtype=np.float64)),
        "max": float(values.max()),
    }


def _tokens(x: torch.Tensor) -> Summary:
    values, counts = np.unique(x.numpy(), return_counts=True)
    most = int(counts.argmax())
    return {
        "min": int(values[0]),
        "max": int(values[-1]),
        "distinct": len(values),
        "length": math.prod(x.shape[1:]),
        "most_frequent": int(values[most]),
        "share": float(counts[most] / counts.sum()),
    }


def _constant(x: torch.Tensor) -> int:
    """Number of inputs that are the same in all examples."""
    return int((x.amin(dim=0) == x.amax(dim=0)).sum())


def _labels(dataset: Dataset) -> Summary:
    train, test = dataset.y_train, dataset.y_test
    if dataset.labels is not None:
        return {"classes": _counts(dataset, _bins(train), _bins(test))}
    if dataset.task == "multilabel":
        return {"classes": _counts(dataset, train.sum(dim=0).numpy(), test.sum(dim=0).numpy())}
    if train.is_floating_point():
        return {"target": {**statistics(train), "shape": list(train.shape[1:])}}
    if dataset.task == "segmentation" or train.ndim > 2:
        return {"masks": _masks(dataset)}
    return {"target": {**_tokens(train), "shape": list(train.shape[1:])}}


def _bins(labels: torch.Tensor) -> np.ndarray:
    return np.bincount(labels.flatten().numpy().clip(min=0))


def _counts(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> list[Summary]:
    size = max(len(dataset.classes), len(train), len(test))
    return [
        {
            "name": _name(dataset, i),
            "train": int(train[i]) if i < len(train) else 0,
            "test": int(test[i]) if i < len(test) else 0,
        }
        for i in range(size)
    ]


def _name(dataset: Dataset, number: int) -> str:
    return dataset.classes[number] if number < len(dataset.classes) else str(number)


def _masks(dataset: Dataset) -> list[Summary]:
    """Share of the training masks' pixels that each class has, and that are of no class."""
    values, counts = np.unique(dataset.y_train.numpy(), return_counts=True)
    shares = dict(zip(values.tolist(), (counts / counts.sum()).tolist(), strict=True))
    known = range(max(len(dataset.classes), int(values[-1]) + 1))
    rows = [{"name": _name(dataset, i), "share": shares.get(i, 0.0)} for i in known]
    if void := sum(share for value, share in shares.items() if value < 0):
        rows.append({"name": "(no class)", "share": void})
    return rows
