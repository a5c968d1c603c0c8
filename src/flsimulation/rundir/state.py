"""A strategy's state as a safetensors file: its arrays, and the rest as JSON in the file's metadata.

Only numbers, texts and arrays are stored, and reading creates nothing else. What a strategy was created
with, its functions for example, comes from the experiment again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from flwr.app import Array, ArrayRecord
from safetensors.numpy import load

from flsimulation.errors import RunError
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.rundir.tensors import KINDS, tensors_of

Arrays: TypeAlias = dict[str, np.ndarray]
"""The arrays of a state by number, to which its JSON refers."""

_STATE = "state"  # key of the metadata


def dump_state(attributes: Mapping[str, Any]) -> bytes:
    """A strategy's attributes as they are now, without its functions.

    Raises
    ------
    RunError
        If one is neither a number, a text, an array, nor a list or dictionary of these.
    """
    arrays: Arrays = {}
    state = {
        name: _plain(name, value, arrays)
        for name, value in attributes.items()
        if not callable(value)
    }
    # joined to one copy: the strategy may change its arrays while this is written
    return b"".join(tensors_of(arrays, {_STATE: json.dumps(state)}))


def load_state(content: bytes) -> dict[str, Any]:
    """The attributes of `dump_state`.

    Raises
    ------
    SafetensorError, ValueError, KeyError, TypeError
        If the content is damaged.
    """
    arrays = load(content)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    state = json.loads(header["__metadata__"][_STATE])
    return {name: _value(value, arrays) for name, value in state.items()}


def _plain(name: str, value: Any, arrays: Arrays) -> Any:
    """A value as JSON; arrays are added to ``arrays``, and referred to by number."""
    plain = functools.partial(_plain, name, arrays=arrays)
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, np.ndarray | np.generic):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: _added(name, np.asarray(value), arrays)}
    if isinstance(value, bytes):
        return {"bytes": _added(name, np.frombuffer(value, np.uint8), arrays)}
    if isinstance(value, Array):
        return {"held": _added(name, value.numpy(), arrays)}
    if isinstance(value, ArrayRecord):
        return {"record": [[key, plain(own)] for key, own in value.items()]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": [[key, plain(own)] for key, own in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [plain(own) for own in value]}
    raise _cannot_be_stored(name, type(value).__name__)


def _added(name: str, array: np.ndarray, arrays: Arrays) -> str:
    if array.dtype.name not in KINDS:
        raise _cannot_be_stored(name, f"array of {array.dtype}")
    place = str(len(arrays))
    arrays[place] = array
    return place


def _cannot_be_stored(name: str, kind: str) -> RunError:
    return RunError(
        f"the strategy's attribute {name} is a {kind}, which a checkpoint cannot store; "
        f"make it a number, a text, an array, or a list or dictionary of these"
    )


def _value(plain: Any, arrays: Arrays) -> Any:
    """The value of `_plain`."""
    if plain is None or isinstance(plain, bool | int | str):
        return plain
    ((kind, content),) = plain.items()
    return _READ[kind](content, arrays)


def _pairs(content: Any, arrays: Arrays) -> dict[str, Any]:
    return {str(key): _value(own, arrays) for key, own in content}


_READ: dict[str, Callable[[Any, Arrays], Any]] = {
    "float": lambda content, _: float.fromhex(content),
    "array": lambda content, arrays: np.array(arrays[content]),
    "scalar": lambda content, arrays: arrays[content][()],
    "bytes": lambda content, arrays: arrays[content].tobytes(),
    "held": lambda content, arrays: HeldArray(np.array(arrays[content])),
    "record": lambda content, arrays: joined(_pairs(content, arrays)),
    "dict": _pairs,
    "list": lambda content, arrays: [_value(own, arrays) for own in content],
    "tuple": lambda content, arrays: tuple(_value(own, arrays) for own in content),
}
