"""Checkpoints of a run: global model and strategy state of the last two rounds."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flsimulation.errors import InputError
from flsimulation.host.files import Parts, write_atomic

_KEPT = 2
_ALIGNED = 8  # bytes
_KINDS = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
    "complex64": "C64",
}
"""NumPy's types and their names in a safetensors file."""


@dataclass(frozen=True)
class SavedRound:
    """A checkpoint, read from its files."""

    round: int
    arrays: ArrayRecord
    strategy: Mapping[str, Any]
    """Attributes of the strategy object."""


def safetensors_of(arrays: ArrayRecord) -> Parts:
    """The global model as the parts of a safetensors file: a header, and the arrays' own bytes.

    The library's function copies all numbers three times. The form is that of
    https://github.com/huggingface/safetensors#format, the largest types first, so that all are
    aligned.
    """
    values = {str(name): _in_order(array.numpy()) for name, array in arrays.items()}
    order = sorted(values, key=lambda name: (-values[name].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        value = values[name]
        start, end = end, end + value.nbytes
        kind = _KINDS[value.dtype.name]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    numbers = [values[name].reshape(-1).view(np.uint8).data for name in order]
    return [len(text).to_bytes(8, "little"), text, *numbers]


def _in_order(value: np.ndarray) -> np.ndarray:
    """The numbers one after the other, each with its lowest byte first; copied only if they are not."""
    value = np.asarray(value, order="C")  # ascontiguousarray turns the shape [] into [1]
    return value.astype(value.dtype.newbyteorder("<"), copy=False)


def serialize_arrays(arrays: ArrayRecord) -> bytes:
    """The global model as a safetensors file in memory."""
    return b"".join(safetensors_of(arrays))


def write_checkpoint(folder: Path, round: int, model: Parts, strategy: bytes) -> None:
    """Write a round's checkpoint and remove those before the last two.

    The model is written last, and atomically: if its file exists, the checkpoint is complete.

    Parameters
    ----------
    folder : Path
        Of the checkpoints; made if it is not there.
    round : int
        Its number.
    model : sequence of bytes
        The global model after it, from `safetensors_of`; not changed meanwhile.
    strategy : bytes
        The strategy object's attributes, from `pickled`.
    """
    folder.mkdir(exist_ok=True)
    write_atomic(_strategy_file(folder, round), strategy)
    write_atomic(_model_file(folder, round), model)
    for round in _saved(folder)[:-_KEPT]:
        _model_file(folder, round).unlink()
        _strategy_file(folder, round).unlink(missing_ok=True)


def pickled(strategy: Strategy | None) -> bytes:
    """A strategy's attributes as they are now: it changes them when it configures a round."""
    return pickle.dumps(vars(strategy))


def read_checkpoint(folder: Path, rounds: int) -> SavedRound:
    """The newest complete checkpoint of at most ``rounds`` rounds.

    The strategy's state is a pickle: read only run directories of your own.

    Raises
    ------
    InputError
        If there is none.
    """
    for round in reversed([round for round in _saved(folder) if round <= rounds]):
        try:
            return _read(folder, round)
        except (OSError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError):
            continue  # damaged: the one before it is kept for this case
    raise InputError(f"{folder.parent}: has no checkpoint to resume from; start a new run")


def _read(folder: Path, round: int) -> SavedRound:
    arrays = load_file(_model_file(folder, round))
    state = pickle.loads(_strategy_file(folder, round).read_bytes())  # noqa: S301 - see above
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    return SavedRound(round, record, state)


def _saved(folder: Path) -> list[int]:
    return sorted(
        int(path.stem.removeprefix("round-")) for path in folder.glob("round-*.safetensors")
    )


def _model_file(folder: Path, round: int) -> Path:
    return folder / f"round-{round:06d}.safetensors"


def _strategy_file(folder: Path, round: int) -> Path:
    return folder / f"round-{round:06d}.strategy.pickle"
