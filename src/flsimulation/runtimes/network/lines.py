"""What the server's program tells the command that drives it, as lines of Flower's own log.

A SuperLink streams what a run's ServerApp prints to whoever follows the run. Lines that begin with
`MARK` are for the program that follows; all others are for people.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from safetensors.numpy import load

from flsimulation.events import Checkpoint, Event
from flsimulation.rundir.checkpoint import serialize_arrays
from flsimulation.runtimes.network.events import from_json, to_json
from flsimulation.runtimes.network.names import MARK


def tell(event: Event) -> None:
    """A sink that prints each event as a line of the run's log."""
    _print(of(event))


def of(event: Event) -> str:
    """The line of an event; empty for one that does not travel."""
    return _line(content) if (content := to_json(event)) is not None else ""


def tell_opened(run_dir: str) -> None:
    """Print where the server writes the run."""
    _print(_line(json.dumps({"run-dir": run_dir})))


def tell_model(event: Event) -> None:
    """A sink that prints each round's global model, for whoever asked for it."""
    if isinstance(event, Checkpoint):
        model = base64.b64encode(serialize_arrays(event.arrays)).decode()
        _print(_line(json.dumps({"model": event.round, "safetensors": model})))


def _checkpoint(told: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that a telling of `tell_model` holds, which is without the strategy."""
    arrays = load(base64.b64decode(told["safetensors"]))
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    return Checkpoint(int(told["model"]), record, None)


def tell_result(result: dict[str, Any]) -> None:
    """Print what the run came to."""
    _print(_line(json.dumps({"result": result})))


def tell_error(message: str, *, input: bool) -> None:
    """Print why the run could not go on, and whether its input was at fault."""
    _print(of_error(message, input=input))


def of_error(message: str, *, input: bool) -> str:
    """The line that `tell_error` prints."""
    return _line(json.dumps({"error": message, "input": input}))


def read(line: str) -> Event | dict[str, Any] | None:
    """The event, or one of the other tellings; None for a line that is for people."""
    _, mark, content = line.partition(MARK)
    if not mark:
        return None
    try:
        found = json.loads(content)
        if "model" in found:
            return _checkpoint(found)
        return from_json(content) if "event" in found else dict(found)
    except (ValueError, TypeError):
        return None


def _line(content: str) -> str:
    return f"{MARK}{content}\n"


def _print(line: str) -> None:
    if line:
        sys.stdout.write(line)  # one write, so that no other thread's line cuts it
        sys.stdout.flush()
