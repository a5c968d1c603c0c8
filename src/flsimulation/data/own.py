"""Data of the user's own: a function that returns a `Dataset` or a dict of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from flsimulation.data.arrays import Examples, Inputs, assemble, owners_note, refusal, standardized
from flsimulation.data.checks import check_finite
from flsimulation.data.dataset import Dataset
from flsimulation.data.leaves import each, first, named
from flsimulation.data.targets import make_targets
from flsimulation.data.task import About, Form, has_positions
from flsimulation.errors import DataError, describe_error
from flsimulation.experiment.importing import import_object
from flsimulation.experiment.spec import Data
from flsimulation.experiment.suggest import nearest

_NEEDED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("classes", "owners")


def load_own(spec: Data, seed: int) -> Dataset:
    """Call the function behind ``data.dataset`` with ``data.args`` and take what it returns.

    A dict is taken with little change: bytes of images are scaled like everywhere, floats become
    float32, integer inputs (tokens) stay integers, integer labels are the numbers of classes
    unless `flsimulation.data.task.decide` or ``data.task`` says otherwise.

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
        return _from_mapping(result, spec, seed)
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


def _from_mapping(result: Mapping[str, Any], spec: Data, seed: int) -> Dataset:
    _check_names(result, spec)
    y_train, y_test = (_array(name, result[name], spec) for name in ("y_train", "y_test"))
    owners = result.get("owners")
    owners = None if owners is None else _array("owners", owners, spec)
    names = () if result.get("classes") is None else _array("classes", result["classes"], spec)
    x_train, x_test = (_inputs(name, result[name], spec) for name in ("x_train", "x_test"))
    if x_train.keys() != x_test.keys():
        raise refusal(
            spec,
            f"x_train has the inputs {_listed(x_train)}, x_test {_listed(x_test)}; give both all",
        )
    if len(x_train) > 1 and spec.fill == "drop":
        raise refusal(
            spec, "data.fill 'drop' is for one array of inputs; use another of its values"
        )
    telling = _telling(x_train, y_train)
    found: dict[str, Dataset] = {}
    for name in sorted(x_train, key=lambda name: name != telling):
        about = About("y_train", numbered=True, quiet=bool(found))
        found[name] = assemble(
            spec, seed, Examples(x_train[name], y_train, owners), Examples(x_test[name], y_test),
            tuple(map(str, names)), about,
            Inputs(_place("x_train", name), _place("x_test", name), tokens=True),
        )  # fmt: skip
        spec = spec.model_copy(update={"task": found[name].task})
    one = found[telling]
    if not isinstance(result["x_train"], Mapping):
        return one
    return replace(
        one,
        x_train={name: first(found[name].x_train) for name in x_train},
        x_test={name: first(found[name].x_test) for name in x_train},
        notes=tuple(dict.fromkeys(note for part in found.values() for note in part.notes)),
    )


def _telling(inputs: Mapping[str, np.ndarray], labels: np.ndarray) -> str:
    """Name of the inputs by which the task is decided: each of their tokens or pixels has a label."""
    forms = {name: Form(x.shape, x.dtype.kind in "iu") for name, x in inputs.items()}
    fitting = (name for name, form in forms.items() if has_positions(labels, form))
    return next(fitting, next(iter(inputs)))


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
    try:
        array = _numpy(value)
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise refusal(spec, f"{name} is no array: {text}; give all rows one shape") from None
    if array.dtype.kind == "O" and name[0] != "x":
        array = _words(array)
    kinds = "buif" if name[0] == "x" else "buifU"
    if array.dtype.kind not in kinds or array.ndim == 0:
        wanted = "numbers" if name[0] == "x" else "numbers or words"
        kind = array.dtype if array.ndim else type(value).__name__
        raise refusal(spec, f"{name} must be an array of {wanted}, got {kind}; convert it")
    return array


def _inputs(name: str, value: Any, spec: Data) -> dict[str, np.ndarray]:
    """The arrays of inputs by name; the name of the only one is empty."""
    if not isinstance(value, Mapping):
        return {"": _array(name, value, spec)}
    if not value:
        raise refusal(spec, f"{name} is an empty dict; give at least one array of inputs")
    return {str(key): _array(_place(name, str(key)), own, spec) for key, own in value.items()}


def _place(name: str, key: str) -> str:
    return f"{name}[{key!r}]" if key else name


def _listed(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(filter(None, arrays)) or "without a name"


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())
    return np.asarray(value)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """In memory, without gradients, of a type that NumPy has too."""
    return torch.from_numpy(_numpy(tensor))


def _words(array: np.ndarray) -> np.ndarray:
    """Words, as pandas keeps them, as an array of text; anything else as it is."""
    words = all(isinstance(word, str) for word in array.ravel().tolist())
    return array.astype(np.str_) if words else array


def _checked(dataset: Dataset, spec: Data) -> Dataset:
    """Bring the labels of a user's data set to the form of their task, and check all parts."""
    if dataset.owners is not None and len(dataset.owners) != len(dataset.y_train):
        raise refusal(
            spec, f"it has {len(dataset.owners)} owners but {len(dataset.y_train)} labels"
        )
    _check_dataset(dataset, spec)
    x_train, x_test = (each(_plain, x) for x in (dataset.x_train, dataset.x_test))
    dataset = replace(dataset, x_train=x_train, x_test=x_test)
    for part in ("x_train", "x_test"):
        for name, tensor in named(getattr(dataset, part)):
            place = _place(part, name)
            check_finite(spec, _array(place, tensor, spec), place, _names(dataset))
    if spec.task == "auto" and dataset.task != "auto":
        spec = spec.model_copy(update={"task": dataset.task})
    y_train, y_test = (_array(name, getattr(dataset, name), spec) for name in ("y_train", "y_test"))
    x = {name: _numpy(tensor) for name, tensor in named(dataset.x_train)}
    telling = x[_telling(x, y_train)]
    form = Form(telling.shape, telling.dtype.kind in "iu")
    about = About("y_train", dataset.classes, numbered=True)
    targets = make_targets(spec, y_train, y_test, form, about)
    if spec.standardize:
        if isinstance(x_train, dict) or isinstance(x_test, dict):
            raise refusal(
                spec, "data.standardize is for one array of inputs, not several; remove it"
            )
        x_train, x_test = standardized(spec, x_train, x_test, Inputs(columns=dataset.columns))
    return replace(
        dataset, x_train=x_train, x_test=x_test, y_train=targets.train, y_test=targets.test, classes=targets.classes,
        task=targets.task, notes=(*dataset.notes, *targets.notes, *owners_note(spec, dataset.owners)),
    )  # fmt: skip


def _check_dataset(dataset: Dataset, spec: Data) -> None:
    """Refuse what the type hints of `Dataset` exclude."""
    parts = [(part, getattr(dataset, part)) for part in _NEEDED]
    for part, whole in parts:
        for value in whole.values() if isinstance(whole, dict) else [whole]:
            if not isinstance(value, torch.Tensor):
                raise refusal(
                    spec, f"{part} of its Dataset must be a tensor, got {type(value).__name__}; use "
                    f"torch.as_tensor, or return a dict of arrays"
                )  # fmt: skip
    if dataset.task not in get_args(Data.model_fields["task"].annotation):
        raise refusal(spec, f"its Dataset has the task {dataset.task!r}; use one of data.task")


def _names(dataset: Dataset) -> tuple[str, ...]:
    return Inputs(columns=dataset.columns).names


def read_own_site(site: str, path: Path, spec: Data) -> dict[str, Any]:
    """Call the function behind ``data.reader`` with a site's name and path, and ``data.args``.

    Returns
    -------
    dict
        ``x``, arrays by name (the name of the only one is empty), ``y``, and ``classes``, a tuple.

    Raises
    ------
    DataError
        If the function cannot be imported, raises, or returns something else.
    """
    function = import_object(spec.reader, "data.reader", DataError)
    if not callable(function):
        raise DataError(f"data.reader {spec.reader!r} is no function; name one")
    try:
        result = function(site, path, **spec.args)
    except Exception as error:
        raise DataError(f"data.reader {spec.reader!r} raised {describe_error(error)}") from error
    known = {"x", "y", "classes"}
    if not isinstance(result, Mapping) or not {"x", "y"} <= result.keys() <= known:
        got = ", ".join(map(str, result)) if isinstance(result, Mapping) else type(result).__name__
        raise DataError(
            f"data.reader {spec.reader!r} must return a dict with x, y and, if there are any, "
            f"classes, got {got or 'an empty one'}"
        )
    classes = result.get("classes")
    names = () if classes is None else tuple(map(str, _array("classes", classes, spec)))
    return {
        "x": _inputs("x", result["x"], spec),
        "y": _array("y", result["y"], spec),
        "classes": names,
    }
