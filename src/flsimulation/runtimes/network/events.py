"""Events as lines of JSON, to send them between processes and machines."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from flsimulation import events
from flsimulation.events import Event
from flsimulation.experiment import flatten, unflatten

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        events.RunStarted,
        events.EngineReported,
        events.Noticed,
        events.ClientsConnected,
        events.ClientMoved,
        events.ClientsAwaited,
        events.PhaseStarted,
        events.ClientReplied,
        events.Judged,
        events.RoundFinished,
        events.RunFinished,
    )
}
"""Events of a run on a network, except the checkpoint: it contains the model, and is not sent."""


def to_json(event: Event) -> str | None:
    """The event as one line of JSON; None for one that is not sent.

    Numbers that are not finite are written as in Python (``NaN``), and read so.
    """
    kind = type(event).__name__
    if kind not in _KINDS:
        return None
    content = {field.name: getattr(event, field.name) for field in fields(event)}
    if isinstance(event, events.RunStarted):
        content["experiment"] = flatten(event.experiment)
    return json.dumps({"event": kind, **content})


def from_json(line: str) -> Event:
    """The event of a line from `to_json`.

    Raises
    ------
    ValueError
        If the line is not an event.
    """
    content = json.loads(line)
    kind = _KINDS.get(content.pop("event", "")) if isinstance(content, dict) else None
    if kind is None:
        raise ValueError(f"not an event: {line[:80]}")
    for name in ("partitions", "cohort", "classes", "notes"):
        if name in content:
            content[name] = tuple(content[name])
    if kind is events.RunStarted:
        content["experiment"] = unflatten(content["experiment"])
    try:
        event: Event = kind(**content)
    except TypeError as error:
        raise ValueError(f"not an event: {error}") from None
    return event
