"""``flsim logs``: what the services print, with a run's events as lines for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flsimulation.cli.deploy.compose import find_files, open_project
from flsimulation.errors import InputError
from flsimulation.events import scores_of
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
    """A line of a log for people; None for an event that says little by itself."""
    before, mark, content = line.partition(MARK)
    if not mark:
        return line
    try:
        said = _said(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError):
        return line  # of another version, or cut
    return f"{before}flsim: {said}\n" if said else None


def _said(told: dict[str, Any]) -> str | None:
    """What an event tells, of those that tell something new."""
    if "run-dir" in told:
        return f"the run is written to {told['run-dir']}"
    if "error" in told and "event" not in told:
        return str(told["error"])
    kind = told.get("event")
    if kind == "RunStarted":
        spec = told["experiment"]
        return f"run {spec['name']} started: {spec['strategy.name']}, {spec['data.clients']} clients, {spec['strategy.rounds']} rounds"
    if kind == "ClientsConnected":
        return f"{len(told['partitions'])} of {told['expected']} clients connected"
    if kind == "ClientReplied" and told["reason"] is not None:
        return f"round {told['round']}: client {told['partition']} failed ({told['reason']}): {told['error']}"
    if kind == "RoundFinished":
        return _round(told)
    if kind == "RunFinished":
        error = f": {told['error']}" if told["error"] else ""
        return f"run {told['state']} after {told['rounds']} rounds, {told['seconds']:.1f} s{error}"
    return None


def _round(told: dict[str, Any]) -> str:
    scores = scores_of(told)
    parts = [f"{name} {scores[name]:.4f}" for name in ("accuracy", "loss") if name in scores]
    parts.append(f"{told['seconds']['total']:.2f} s")
    if failed := sum(told["failures"].values()):
        parts.append(f"{failed} failed")
    return f"round {told['round']}: {', '.join(parts)}"
