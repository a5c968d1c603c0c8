"""Checkpoints of a run: global model and strategy state of the last two rounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flsimulation.errors import InputError
from flsimulation.host.files import Parts, write_atomic
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.messages.weights import values_of
from flsimulation.rundir.state import dump_state, load_state
from flsimulation.rundir.tensors import tensors_of

_KEPT = 2
_MODEL = re.compile(r"round-(\d{6,9})\.safetensors")
_DAMAGED = (
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)


@dataclass(frozen=True)
class SavedRound:
    """A checkpoint, read from its files."""

    round: int
    arrays: ArrayRecord
    strategy: Mapping[str, Any]
    """Attributes of the strategy object."""


def safetensors_of(arrays: ArrayRecord) -> Parts:
    """The global model as the parts of a safetensors file: a header, and the arrays' own bytes."""
    return tensors_of(values_of(arrays))


def serialize_arrays(arrays: ArrayRecord) -> bytes:
    """The global model as a safetensors file in memory."""
    return b"".join(safetensors_of(arrays))


def state_of(strategy: Strategy | None) -> bytes:
    """A strategy's state as a file: it changes its attributes when it configures a round.

    Raises
    ------
    RunError
        If an attribute cannot be stored.
    """
    return dump_state(vars(strategy) if strategy is not None else {})


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
        The strategy's state, from `state_of`.
    """
    folder.mkdir(exist_ok=True)
    write_atomic(_strategy_file(folder, round), strategy)
    write_atomic(_model_file(folder, round), model)
    for round in _saved(folder)[:-_KEPT]:
        _model_file(folder, round).unlink()
        _strategy_file(folder, round).unlink(missing_ok=True)
        _pickle(folder, round).unlink(missing_ok=True)


def read_checkpoint(folder: Path, rounds: int) -> SavedRound:
    """The newest complete checkpoint of at most ``rounds`` rounds.

    Raises
    ------
    InputError
        If there is none, or it is of a version that stored pickles.
    """
    saved = [round for round in _saved(folder) if round <= rounds]
    for round in reversed(saved):
        try:
            return _read(folder, round)
        except (*_DAMAGED, SafetensorError):
            continue  # damaged: the one before it is kept for this case
    if any(_pickle(folder, round).exists() for round in saved):
        raise InputError(
            f"{folder}: was written by an earlier version, whose checkpoints hold pickles, which are "
            f"not read: they can run any code; resume with that version (versions in manifest.json), "
            f"or start a new run"
        )
    raise InputError(f"{folder.parent}: has no checkpoint to resume from; start a new run")


def _read(folder: Path, round: int) -> SavedRound:
    model, strategy = _model_file(folder, round), _strategy_file(folder, round)
    if not (model.is_file() and strategy.is_file()):  # to read a pipe would be to wait for ever
        raise FileNotFoundError(f"{folder}: has no whole checkpoint of round {round}")
    arrays = load_file(model)
    state = load_state(strategy.read_bytes())
    record = joined({name: HeldArray(np.asarray(value)) for name, value in arrays.items()})
    return SavedRound(round, record, state)


def _saved(folder: Path) -> list[int]:
    found = (_MODEL.fullmatch(path.name) for path in folder.glob("round-*.safetensors"))
    return sorted(int(match[1]) for match in found if match is not None)


def _model_file(folder: Path, round: int) -> Path:
    return folder / f"round-{round:06d}.safetensors"


def _strategy_file(folder: Path, round: int) -> Path:
    return folder / f"round-{round:06d}.strategy.safetensors"


def _pickle(folder: Path, round: int) -> Path:
    """The strategy's state as earlier versions stored it."""
    return folder / f"round-{round:06d}.strategy.pickle"
