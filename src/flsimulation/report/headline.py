"""The head of the page: what ran, when, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from flsimulation.report.formats import ABSENT, duration, plural
from flsimulation.report.log import RunLog, look, number

_NOTICES = {
    "running": "The run is in progress: this is what it had written so far.",
    "interrupted": "The run was interrupted: this is what it had written so far.",
    "unknown": "The run directory holds no manifest.json: this is what else it holds.",
}


@dataclass(frozen=True)
class Headline:
    """The page's head."""

    name: str
    state: str
    """``running``, ``completed``, ``failed``, ``interrupted`` or ``unknown``."""
    subject: str
    """``fedavg, mlp, mnist, 2 clients (iid)``, as far as it is known."""
    facts: tuple[tuple[str, str], ...]
    """When, how long, which seed."""
    notice: str
    """Why there is not more; empty for a completed run."""


def headline(log: RunLog) -> Headline:
    """Give the head, from the manifest or else from the experiment."""
    manifest, state = log.manifest, str(log.manifest.get("state") or "unknown")
    seed = look(manifest if "seed" in manifest else log.settings, "seed")
    facts = {
        "Started": _moment(str(manifest.get("started") or "")),
        "Duration": duration(number(manifest, "seconds")),
        "Seed": ABSENT if seed is None else str(seed),
    }
    return Headline(
        name=str(manifest.get("name") or log.settings.get("name") or log.path.resolve().name),
        state=state,
        subject=_subject(log),
        facts=tuple((name, value) for name, value in facts.items() if value not in ("", ABSENT)),
        notice=str(manifest.get("error") or _NOTICES.get(state, "")),
    )


def _moment(started: str) -> str:
    try:
        return f"{datetime.fromisoformat(started):%d %B %Y, %H:%M} UTC".lstrip("0")
    except ValueError:
        return started


def _subject(log: RunLog) -> str:
    clients = number(log.manifest, "data", "clients") or number(log.settings, "data", "clients")
    how = look(log.settings, "data", "partition")
    parts = [
        look(log.settings, "strategy", "name"),
        look(log.settings, "model", "class"),
        look(log.manifest, "data", "dataset") or look(log.settings, "data", "dataset"),
        plural(int(clients), "client") + (f" ({how})" if how else "") if clients else None,
    ]
    return " \N{MIDDLE DOT} ".join(str(part) for part in parts if part)
