"""Numbers that a Trainer knows in a step: inputs of a program, which is one for all steps.

A step computes with such a number as Python would: a `Fact` is a tensor that does not take part in the
choice of types. What needs the number itself, such as ``if``, cannot be a program's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from flsimulation.models.lightning_modules import SILENT

TYPICAL: Mapping[str, int] = MappingProxyType(
    {
        "batch_idx": 3,
        "global_step": 7,
        "current_epoch": 2,
        "federated_round": 5,
        "num_training_batches": 11,
        "estimated_stepping_batches": 44,
    }
)
"""All such numbers, in the order of a program's inputs, as they may be in some step."""
FIRST: Mapping[str, int] = MappingProxyType(
    {**TYPICAL, "batch_idx": 0, "global_step": 0, "current_epoch": 0, "federated_round": 1}
)
"""The same in a first step."""
BY_BATCHES = frozenset(TYPICAL) - {"global_step", "federated_round"}
"""Those that are the same for two clients only if these have as many batches."""
OF_MODULE = ("global_step", "current_epoch", "federated_round")
"""Those that are a module's attributes, too."""
_OF_TRAINER = frozenset(TYPICAL) - {"batch_idx", "federated_round"}
_SAID = {"batch_idx": "batch_idx"} | {name: f"self.{name}" for name in OF_MODULE}
_CONSTANTS: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys(("global_rank", "local_rank", "node_rank"), 0),
        **dict.fromkeys(("num_devices", "num_nodes", "world_size"), 1),
        **dict.fromkeys(("is_global_zero", "training"), True),
        **dict.fromkeys(("validating", "testing", "predicting", "sanity_checking"), False),
        "max_steps": -1,
        "datamodule": None,
        "logger": SILENT,
        "loggers": (SILENT,),
    }
)


class NeedsValue(Exception):  # noqa: N818 - no error: the module is trained client by client
    """The step needs to know a number that is not known when it becomes a program."""


class Facts:
    """What a step knows of the fit around it.

    Parameters
    ----------
    values : mapping
        Numbers by name, as plain ones or as tensors without an axis; others are not known.
    constants : mapping
        Numbers of the Trainer that are the same in all fits, beside those that always are.
    """

    def __init__(self, values: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
        self.values, self.constants = values, constants
        self.read = set[str]()
        """Names of the tensors that were computed with."""
        self.trainer = _Trainer(self)

    def get(self, name: str) -> Any:
        """A number; None if it is not known."""
        value = self.values.get(name)
        return Fact(value, frozenset((name,)), self.read) if isinstance(value, Tensor) else value


class _Trainer:
    """What a step may ask its Trainer for."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_facts":
            raise NeedsValue(f"changes self.trainer.{name}")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_TRAINER and (found := self._facts.get(name)) is not None:
            return found
        for constants in (_CONSTANTS, self._facts.constants):
            if name in constants:
                return constants[name]
        raise NeedsValue(f"uses self.trainer.{name}")


class Fact:
    """A number that is an input of a program, with Python's arithmetic and comparisons.

    Parameters
    ----------
    value : Tensor
        Without an axis: int64, float64 or bool.
    names : frozenset of str
        Of the numbers that it was computed from.
    read : set of str
        Takes these names when it is computed with.
    """

    __array_ufunc__ = None  # NumPy's numbers leave the arithmetic to it

    def __init__(self, value: Tensor, names: frozenset[str], read: set[str]) -> None:
        self._value, self._names, self._read = value, names, read

    def tensor(self, dtype: torch.dtype | None = None) -> Tensor:
        """The number as ``torch.tensor`` would have it."""
        self._read |= self._names
        if dtype is None and self._value.is_floating_point():
            dtype = torch.get_default_dtype()
        return self._value.to(dtype) if dtype is not None else self._value.clone()

    def beside(self, tensor: Tensor) -> Tensor:
        """The number in the type that Python's would take in a call with this tensor."""
        self._read |= self._names
        if self._value.dtype == torch.bool:
            return self._value
        alike: Any = 1.0 if self._value.is_floating_point() else 1
        return self._value.to(torch.result_type(tensor, alike))

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch with tensors in place of such numbers."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor | cls)]
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
        if not tensors or func in (Tensor.__getitem__, Tensor.__setitem__):
            next(leaf for leaf in given if isinstance(leaf, cls))._refuse()
        like = next((t for t in tensors if t.is_floating_point()), tensors[0])

        def filled(value: Any) -> Any:
            return value.beside(like) if isinstance(value, cls) else value

        return func(*tree_map(filled, args), **tree_map(filled, dict(kwargs or {})))

    def _with(self, other: Any, function: Callable[..., Any], *, swapped: bool = False) -> Any:
        """Of it and another number, or of it and a tensor."""
        self._read |= self._names
        if isinstance(other, Tensor):
            own = self.beside(other)
            return function(other, own) if swapped else function(own, other)
        if not isinstance(other, Fact | int | float):
            return NotImplemented
        names = self._names | (other._names if isinstance(other, Fact) else set())
        one, two = _number(self._value), _number(other._value if isinstance(other, Fact) else other)
        if function is operator.truediv or isinstance(two, float) or _is_real(one, two):
            one, two = one.double(), two.double() if isinstance(two, Tensor) else float(two)
        found = function(two, one) if swapped else function(one, two)
        return Fact(found, names, self._read)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle ask for what is not there
            raise AttributeError(name)
        return self._refuse()

    def __neg__(self) -> Any:
        return self * -1  # type: ignore[operator]

    def __pos__(self) -> Fact:
        return self

    def _refuse(self, *_: Any) -> Any:
        self._read |= self._names
        said = " and ".join(_SAID.get(n, f"self.trainer.{n}") for n in TYPICAL if n in self._names)
        raise NeedsValue(f"uses {said} otherwise than in sums, products and comparisons")


def _number(value: Any) -> Any:
    """Python's True is 1."""
    is_bool = isinstance(value, Tensor) and value.dtype == torch.bool
    return value.long() if is_bool else value


def _is_real(*values: Any) -> bool:
    return any(isinstance(value, Tensor) and value.is_floating_point() for value in values)


def _operator(function: Callable[..., Any], *, swapped: bool = False) -> Any:
    return lambda own, other: own._with(other, function, swapped=swapped)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Fact, f"__{_name}__", _operator(getattr(operator, _name)))
    setattr(Fact, f"__r{_name}__", _operator(getattr(operator, _name), swapped=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Fact, f"__{_name}__", _operator(getattr(operator, _name)))
for _name in ("bool", "int", "float", "index", "round", "trunc", "floor", "ceil", "str", "format"):
    setattr(Fact, f"__{_name}__", Fact._refuse)
for _name in ("hash", "len", "iter", "divmod", "and", "or", "xor", "abs", "invert", "contains"):
    setattr(Fact, f"__{_name}__", Fact._refuse)
