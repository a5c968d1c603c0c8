"""``flsim logs``: the services' logs, with a run's events as readable lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flsimulation.cli.columns import in_words
from flsimulation.cli.deploy.compose import find_files, open_project
from flsimulation.cli.presence import moved
from flsimulation.errors import InputError, one_line
from flsimulation.events import ClientMoved, main_metrics, scores_of
from flsimulation.experiment.suggest import remedy
from flsimulation.runtimes.network.names import MARK


def logs_command(file: Path | None, services: list[str], *, follow: bool, raw: bool) -> None:
    """Show the logs of some services, or of all."""
    project = open_project(find_files(file))
    for service in services:
        if service not in project.services:
            raise InputError(f"no service {service!r}{remedy(service, project.services)}")
    words = ["logs", *["--follow"] * follow, *services]
    if raw:
        project.show(*words, explain=True)
        return
    colours = ["--ansi", "always"] * sys.stdout.isatty()  # Compose itself sees no terminal now
    project.show(*colours, *words, explain=True, each=readable)


def readable(line: str) -> str | None:
    """A line of a log, an event as text; None for an event that is not shown."""
    before, mark, content = line.partition(MARK)
    if not mark:
        return line
    try:
        text = _text(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError):
        return line  # of another version, or truncated
    return f"{before}flsim: {one_line(text)}\n" if text else None


def _text(event: dict[str, Any]) -> str | None:
    """An event as text; None for one that is not shown."""
    if "run-dir" in event:
        return f"the run is written to {event['run-dir']}"
    if "error" in event and "event" not in event:
        return str(event["error"])
    kind = event.get("event")
    if kind == "RunStarted":
        spec = event["experiment"]
        return f"run {spec['name']} started: {spec['strategy.name']}, {spec['data.clients']} clients, {spec['strategy.rounds']} rounds"
    if kind == "Noticed":
        return str(event["text"])
    if kind == "ClientsConnected":
        return f"{len(event['partitions'])} of {event['expected']} clients connected"
    if kind == "ClientMoved":
        return moved(ClientMoved(**{k: v for k, v in event.items() if k != "event"}))
    if kind == "ClientReplied" and event["reason"] is not None:
        return f"round {event['round']}: client {event['partition']} failed ({event['reason']}): {event['error']}"
    if kind == "RoundFinished":
        return _round(event)
    if kind == "RunFinished":
        error = f": {event['error']}" if event["error"] else ""
        return (
            f"run {event['state']} after {event['rounds']} rounds, {event['seconds']:.1f} s{error}"
        )
    return None


def _round(event: dict[str, Any]) -> str:
    scores = scores_of(event)
    parts = in_words(scores, main_metrics(scores))
    parts.append(f"{event['seconds']['total']:.2f} s")
    if failed := sum(event["failures"].values()):
        parts.append(f"{failed} failed")
    return f"round {event['round']}: {', '.join(parts)}"
