"""A function of the user's own that changes batches: how it is called, and what it may return."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flsimulation import seeds
from flsimulation.data.leaves import Leaves, each, examples, named, one, stacked
from flsimulation.errors import ClientError, DataError, describe_error
from flsimulation.experiment.importing import import_object

_LOCK = threading.Lock()  # the global streams are the process's, and waves train on several threads
_FORMS = {
    True: "(x), (x, generator), (x, y) or (x, y, generator)",
    False: "(x) or (x, y), as nothing is random in an evaluation",
}


class Draws:
    """The random numbers of one client's fit, or of one batch of an evaluation.

    Parameters
    ----------
    seed : int
        Decides all of them.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._batches = seed, 0
        self.generator = torch.Generator().manual_seed(seed)
        """Passed to the function with each batch; only the function draws from it."""

    def next_seed(self) -> int:
        """The seed of the global streams during the next batch."""
        self._batches += 1
        return seeds.integer(self._seed, "transform", self._batches)


class Transform:
    """A user's function for batches.

    Parameters
    ----------
    key : str
        The experiment's key that names it.
    reference : str
        ``module:function`` or ``path/to/file.py:function``.
    training : bool
        Whether it is for training batches, where it may take a generator.
    per_example : bool
        Whether it is called with one example at a time.

    Raises
    ------
    DataError
        If there is no such function, or it takes other parameters.
    """

    def __init__(self, key: str, reference: str, *, training: bool, per_example: bool) -> None:
        self.title = f"{key} {reference!r}"
        self._key, self._per_example = key, per_example
        self._function = import_object(reference, key, DataError)
        if not callable(self._function) or isinstance(self._function, type):
            kind = "a class" if isinstance(self._function, type) else type(self._function).__name__
            raise DataError(f"{self.title} must be a function, got {kind}; name a function")
        takes = _parameters(self._function)
        if takes is None or (not training and "generator" in takes):
            shown = inspect.signature(self._function)
            raise DataError(f"{self.title} must take {_FORMS[training]}, got {shown}; rename them")
        self._takes = takes

    def __call__(
        self, x: Leaves, y: Leaves, rows: np.ndarray, draws: Draws
    ) -> tuple[Leaves, Leaves]:
        """The transformed batch of some examples.

        Parameters
        ----------
        x, y : Tensor or dict of Tensor
            The data set's inputs and labels, [n, ...], on the CPU; the function gets copies.
        rows : int64 [batch]
            The examples.
        draws : Draws
            Of the client.

        Raises
        ------
        ClientError
            In one line, if the function raises or returns what is no batch of these examples.
        """
        index = torch.from_numpy(rows)
        # A tensor that was made in inference mode could not be changed outside of it.
        with torch.inference_mode(False), torch.no_grad():
            x, y = (each(lambda tensor: tensor[index], part) for part in (x, y))
            with _LOCK, seeds.global_streams(draws.next_seed()):
                changed = self._changed(x, y, draws.generator)
        self._check(*changed, len(rows))
        return changed

    def tried(self, x: Leaves, y: Leaves, count: int) -> None:
        """Call it with the first examples. Raises `DataError`."""
        try:
            self(x, y, np.arange(min(count, examples(x))), Draws(0))
        except ClientError as error:
            raise DataError(str(error)) from error.__cause__

    def refusal(self, problem: str) -> ClientError:
        """Make the error that names the key and the function, and says what is wrong."""
        return ClientError("error", f"{self.title} {problem}, or remove {self._key}")

    def _changed(self, x: Leaves, y: Leaves, generator: torch.Generator) -> tuple[Leaves, Leaves]:
        if not self._per_example:
            return self._called(x, y, generator)
        pairs = [
            self._called(one(x, place), one(y, place), generator) for place in range(examples(x))
        ]
        return self._joined([own for own, _ in pairs]), self._joined([own for _, own in pairs])

    def _called(self, x: Leaves, y: Leaves, generator: torch.Generator) -> tuple[Leaves, Leaves]:
        given = {"y": y, "generator": generator}
        shape = _shape(x)  # the function may change it in place
        try:
            found = self._function(x, **{name: given[name] for name in self._takes})
        except (Exception, SystemExit) as error:
            raise self.refusal(
                f"raised {describe_error(error)} for inputs of shape {shape}; correct it"
            ) from error
        changed = found if isinstance(found, tuple) and len(found) == 2 else (found, y)
        if not all(map(_is_leaves, changed)):
            raise self.refusal(
                f"returned {_kind(found)} for inputs of shape {shape}; let it return the inputs "
                f"as {_kind(x)}, or a pair of inputs and labels"
            )
        return each(Tensor.detach, changed[0]), each(Tensor.detach, changed[1])

    def _joined(self, found: list[Leaves]) -> Leaves:
        """One batch of what was returned for each example."""
        other = next((own for own in found if _shape(own) != _shape(found[0])), None)
        if other is not None:
            raise self.refusal(
                f"returned shape {_shape(found[0])} for one example and {_shape(other)} for "
                f"another; let it return one shape"
            )
        return stacked(found)

    def _check(self, x: Leaves, y: Leaves, count: int) -> None:
        for what, part in (("inputs", x), ("labels", y)):
            for name, tensor in named(part):
                title = f"{what} {name!r}" if name else what
                if tensor.ndim == 0 or len(tensor) != count:
                    size = len(tensor) if tensor.ndim else "one number"
                    raise self.refusal(
                        f"returned {title} of {size} for {count} examples; let it return as many "
                        f"as it received"
                    )
                if missing := _missing(tensor):
                    raise self.refusal(
                        f"returned {title} with {missing} NaN for {count} examples; correct it"
                    )


def _parameters(function: Any) -> list[str] | None:
    """Which of ``y`` and ``generator`` a function takes after the inputs; None for others."""
    try:
        called = function.forward if isinstance(function, nn.Module) else function
        parameters = [*inspect.signature(called).parameters.values()]
    except (TypeError, ValueError):  # a built-in function
        return []
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        return None
    takes = []
    for parameter in parameters[1:]:
        if parameter.name in ("y", "generator"):
            takes.append(parameter.name)
        elif parameter.default is parameter.empty and parameter.kind not in _ANY:
            return None
    return takes


_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _is_leaves(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(
            isinstance(name, str) and isinstance(own, Tensor) for name, own in value.items()
        )
    return isinstance(value, Tensor)


def _kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "None"
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(own).__name__ for own in value) or 'nothing'}"
    if isinstance(value, dict):
        return "a dict of tensors" if _is_leaves(value) else "a dict with other values than tensors"
    return "a tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _shape(value: Leaves) -> str:
    """Whole shapes, in words."""
    found = ((name, tuple(tensor.shape)) for name, tensor in named(value))
    return ", ".join(f"{name} {shape}" if name else f"{shape}" for name, shape in found)


def _missing(tensor: Tensor) -> int:
    """How many numbers are NaN; a sum tells soonest that none is."""
    if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
        return 0
    return int(tensor.isnan().sum())
