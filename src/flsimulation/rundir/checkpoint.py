"""Checkpoints of a run: global model and strategy state of the last two rounds."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from flsimulation.errors import InputError
from flsimulation.events import Checkpoint
from flsimulation.host.files import write_atomic

_KEPT = 2


@dataclass(frozen=True)
class SavedRound:
    """A checkpoint, read from its files."""

    round: int
    arrays: ArrayRecord
    strategy: Mapping[str, Any]
    """Attributes of the strategy object."""


def serialize_arrays(arrays: ArrayRecord) -> bytes:
    """The global model as safetensors."""
    # order="C" and not ascontiguousarray, which turns the shape [] into [1]
    return save({name: np.array(array.numpy(), order="C") for name, array in arrays.items()})


def write_checkpoint(folder: Path, event: Checkpoint) -> None:
    """Write a round's checkpoint and remove those before the last two.

    The model is written last, and atomically: if its file exists, the checkpoint is complete.
    """
    folder.mkdir(exist_ok=True)
    write_atomic(_strategy_file(folder, event.round), pickle.dumps(vars(event.strategy)))
    write_atomic(_model_file(folder, event.round), serialize_arrays(event.arrays))
    for round in _saved(folder)[:-_KEPT]:
        _model_file(folder, round).unlink()
        _strategy_file(folder, round).unlink(missing_ok=True)


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
