"""Data of the user's own: a function that returns a `Dataset` or a dict of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from flsimulation.data.arrays import check_range, inputs, refusal
from flsimulation.data.dataset import Dataset
from flsimulation.data.leaves import Leaves
from flsimulation.errors import DataError, describe_error
from flsimulation.experiment.importing import import_object
from flsimulation.experiment.spec import Data
from flsimulation.experiment.suggest import nearest

_NEEDED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("classes", "owners")


def load_own(spec: Data) -> Dataset:
    """Call the function behind ``data.dataset`` with ``data.args`` and take what it returns.

    A dict is taken with little change: bytes of images are scaled like everywhere, floats become
    float32, integer inputs (tokens) stay integers, integer labels are the numbers of classes.

    Raises
    ------
    DataError
        If the function cannot be imported, raises, or returns something else.
    """
    function = import_object(spec.dataset, "data.dataset", DataError)
    if not callable(function):
        raise refusal(spec, f"it must be a function, got {type(function).__name__}; name another")
    result = _call(function, spec)
    if isinstance(result, Dataset):
        return _checked(result, spec)
    if isinstance(result, Mapping):
        return _checked(_from_mapping(result, spec), spec)
    raise refusal(
        spec, f"it must return a Dataset or a dict of arrays, got {type(result).__name__}"
    )


def _call(function: Any, spec: Data) -> Any:
    try:
        return function(**spec.args)
    except Exception as error:
        raise refusal(
            spec, f"called with data.args {spec.args!r} it raised {describe_error(error)}"
        ) from error


def _from_mapping(result: Mapping[str, Any], spec: Data) -> Dataset:
    _check_names(result, spec)
    y_train, y_test = (_array(name, result[name], spec) for name in ("y_train", "y_test"))
    owners = result.get("owners")
    return Dataset(
        spec.dataset,
        _all_inputs("x_train", result["x_train"], spec),
        _targets(y_train),
        _all_inputs("x_test", result["x_test"], spec),
        _targets(y_test),
        tuple(map(str, _array("classes", result["classes"], spec))) if "classes" in result else (),
        None if owners is None else _array("owners", owners, spec),
    )


def _check_names(result: Mapping[str, Any], spec: Data) -> None:
    unknown = [str(name) for name in result if name not in _NEEDED + _OPTIONAL]
    for name in _NEEDED:
        if name not in result:
            near = nearest(name, unknown)
            hint = f", instead of {near!r}" if near else ""
            raise refusal(spec, f"it returned a dict without {name!r}; add it{hint}")
    if unknown:
        known = ", ".join(_NEEDED + _OPTIONAL)
        raise refusal(spec, f"it returned {', '.join(unknown)}, but only {known} are known")


def _array(name: str, value: Any, spec: Data) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise refusal(spec, f"{name} is no array: {error}; give all rows one shape") from None
    kinds = "buifU" if name in _OPTIONAL else "buif"
    if array.dtype.kind not in kinds or array.ndim == 0:
        wanted = "numbers or words" if name in _OPTIONAL else "numbers"
        kind = array.dtype if array.ndim else type(value).__name__
        raise refusal(spec, f"{name} must be an array of {wanted}, got {kind}; convert it")
    return array


def _all_inputs(name: str, value: Any, spec: Data) -> Leaves:
    """One array of inputs, or several by name."""
    if not isinstance(value, Mapping):
        return _inputs(_array(name, value, spec), spec)
    if not value:
        raise refusal(spec, f"{name} is an empty dict; give at least one array of inputs")
    return {
        str(key): _inputs(_array(f"{name}[{key!r}]", own, spec), spec) for key, own in value.items()
    }


def _inputs(array: np.ndarray, spec: Data) -> torch.Tensor:
    tokens = array.dtype.kind in "iu" and array.dtype != np.uint8
    return torch.from_numpy(array.astype(np.int64)) if tokens else inputs(spec, array)


def _targets(array: np.ndarray) -> torch.Tensor:
    if array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind != "f":
        array = array[:, 0]
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


def _checked(dataset: Dataset, spec: Data) -> Dataset:
    """Name the classes where the function did not, and refuse labels that are not classes."""
    if dataset.owners is not None and len(dataset.owners) != len(dataset.y_train):
        raise refusal(
            spec, f"it has {len(dataset.owners)} owners but {len(dataset.y_train)} labels"
        )
    if dataset.y_train.shape[1:] != dataset.y_test.shape[1:]:
        raise refusal(spec, "training and test labels differ in shape; give them one shape")
    if (labels := dataset.labels) is None:
        return dataset
    every = np.concatenate([labels, dataset.y_test.numpy()])
    names = dataset.classes or tuple(str(number) for number in range(int(every.max()) + 1))
    check_range(spec, every, len(names))
    return replace(dataset, classes=names)
