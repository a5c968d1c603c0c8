"""What a shipped model takes from the data set: its sizes, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import torch

from flsimulation.data.dataset import Dataset
from flsimulation.data.leaves import first
from flsimulation.errors import ModelError
from flsimulation.models.goals import spread_of

TASKS = {
    "mlp": ("classification", "regression", "multilabel"),
    "2nn": ("classification", "regression", "multilabel"),
    "logistic": ("classification", "regression", "multilabel"),
    "cnn": ("classification", "regression", "multilabel"),
    "unet": ("segmentation",),
    "lstm": ("language", "classification", "regression", "multilabel"),
}
"""Tasks of the shipped models, by name."""


def sizes_for(name: str, dataset: Dataset) -> dict[str, Any]:
    """Keyword arguments of a shipped model that the data set decides.

    Raises
    ------
    ModelError
        If the model has no form for the data set's task or inputs.
    """
    if isinstance(dataset.x_train, dict):
        raise ModelError(
            f"model.class {name!r} takes one input, but {dataset.name} has several: "
            f"{', '.join(dataset.x_train)}; use a class of your own"
        )
    task = dataset.task if dataset.task != "auto" else _guessed(dataset)
    if task not in TASKS[name]:
        fitting = [repr(m) for m, tasks in TASKS.items() if task in tasks and _reads(m, dataset)]
        raise ModelError(
            f"model.class {name!r} has no form for {task} (data.task); use "
            f"{', '.join(fitting)}{' or ' if fitting else ''}a class of your own"
        )
    return {**_inputs(name, dataset), **_outputs(name, task, dataset)}


def _reads(name: str, dataset: Dataset) -> bool:
    """Whether a shipped model takes these inputs."""
    try:
        _inputs(name, dataset)
    except ModelError:
        return False
    return True


def _guessed(dataset: Dataset) -> str:
    """The task of a data set that was made without `load_dataset`."""
    return "classification" if dataset.labels is not None else "regression"


def _inputs(name: str, dataset: Dataset) -> dict[str, Any]:
    x = first(dataset.x_train)
    shape = tuple(x.shape[1:])
    if name in ("cnn", "unet"):
        if len(shape) != 3 or (name == "cnn" and shape[1] != shape[2]):
            raise ModelError(
                f"model.class {name!r} needs {'square ' * (name == 'cnn')}images, but "
                f"{dataset.name} has inputs of shape {shape}; use 'mlp' or a class of your own"
            )
        return {"channels": shape[0]} | ({"side": shape[1]} if name == "cnn" else {})
    if name == "lstm":
        if len(shape) != 1 or x.is_floating_point():
            raise ModelError(
                f"model.class 'lstm' needs tokens, integers of shape (tokens,), but {dataset.name} "
                f"has {x.dtype} of shape {shape}; use 'mlp' or a class of your own"
            )
        if (least := min(int(part.min()) for part in _tokens(dataset))) < 0:
            raise ModelError(
                f"model.class 'lstm' needs tokens from 0 on, but {dataset.name} has {least}; number "
                f"them so"
            )
        return {"vocabulary": _vocabulary(dataset)}
    return {"inputs": math.prod(shape)}


def _outputs(name: str, task: str, dataset: Dataset) -> dict[str, Any]:
    if task == "language":
        return {"classes": _vocabulary(dataset)}
    own = {} if task == TASKS[name][0] else {"task": task}
    agreed = dataset.agreed
    if task == "regression":
        mean, deviation = spread_of(dataset.y_train)
        if agreed is not None:  # of all sites, whose targets are not here
            mean, deviation = list(agreed.means), list(agreed.deviations)
        return {**own, "classes": len(mean), "mean": mean, "deviation": deviation}
    if task == "multilabel":
        return {**own, "classes": dataset.y_train.shape[1]}
    if task == "classification" and dataset.y_train.ndim > 1:  # probabilities
        return {**own, "classes": dataset.y_train.shape[1]}
    if agreed is not None and agreed.largest_label is not None and not dataset.classes:
        return {**own, "classes": agreed.largest_label + 1}
    return {**own, "classes": len(dataset.classes) or _largest(dataset.y_train, dataset.y_test) + 1}


def _vocabulary(dataset: Dataset) -> int:
    """Tokens are 0 to the largest of the inputs and, where these are tokens too, the labels."""
    if (agreed := dataset.agreed) is not None:
        return max(agreed.largest_token or 0, agreed.largest_label or 0) + 1
    parts = _tokens(dataset)
    if dataset.task == "language":
        parts += [dataset.y_train, dataset.y_test]
    return _largest(*parts) + 1


def _tokens(dataset: Dataset) -> list[torch.Tensor]:
    return [first(dataset.x_train), *([first(dataset.x_test)] if dataset.has_test else [])]


def _largest(*parts: torch.Tensor) -> int:
    return max(int(part.max()) for part in parts)
