"""Events, result and errors from the server to the process that follows the run, as log lines.

A SuperLink streams what a run's ServerApp prints to the processes that follow the run. Lines that
begin with `MARK` are for these programs; all others are for people. The lines that a run prints are
numbered from 1, so that a program notices if the stream has left one out.
"""

from __future__ import annotations

import base64
import itertools
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
    """The line of an event; empty for one that is not sent."""
    return _line(content) if (content := to_json(event)) is not None else ""


def tell_opened(run_dir: str) -> None:
    """Print the path of the run directory."""
    _print(_line(json.dumps({"run-dir": run_dir})))


def tell_model(event: Event) -> None:
    """A sink that prints each round's global model as a line of the run's log."""
    if isinstance(event, Checkpoint):
        model = base64.b64encode(serialize_arrays(event.arrays)).decode()
        _print(_line(json.dumps({"model": event.round, "safetensors": model})))


def _checkpoint(content: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of a line of `tell_model`, which is without the strategy."""
    arrays = load(base64.b64decode(content["safetensors"]))
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    return Checkpoint(int(content["model"]), record, None)


def tell_result(result: dict[str, Any]) -> None:
    """Print the run's result."""
    _print(_line(json.dumps({"result": result})))


def tell_error(message: str, *, input: bool) -> None:
    """Print why the run could not continue, and whether its input was the cause."""
    _print(of_error(message, input=input))


def of_error(message: str, *, input: bool) -> str:
    """The line that `tell_error` prints."""
    return _line(json.dumps({"error": message, "input": input}))


def read(line: str) -> Event | dict[str, Any] | None:
    """The event, or the content of another line for programs; None for a line for people."""
    return read_numbered(line)[1]


def read_numbered(line: str) -> tuple[int | None, Event | dict[str, Any] | None]:
    """What `read` returns, after the line's number; None for a line without one."""
    _, mark, content = line.partition(MARK)
    if not mark:
        return None, None
    try:
        found = json.loads(content)
        number = found.pop("line", None)
        if "model" in found:
            return number, _checkpoint(found)
        return number, from_json(json.dumps(found)) if "event" in found else dict(found)
    except (ValueError, TypeError, AttributeError):
        return None, None


def _line(content: str) -> str:
    return f"{MARK}{content}\n"


_numbers = itertools.count(1)
"""Of this process's run: each run has a process of its own."""


def _print(line: str) -> None:
    if line:
        numbered = line.replace("{", f'{{"line": {next(_numbers)}, ', 1)
        sys.stdout.write(numbered)  # one write, so that no other thread's line splits it
        sys.stdout.flush()
