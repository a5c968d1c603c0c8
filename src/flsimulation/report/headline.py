"""The head of the page: what ran, when, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from flsimulation.report.formats import ABSENT, duration, plural
from flsimulation.rundir import RunRecord, look, number

_NOTICES = {
    "running": "The run is in progress: this is what it had written so far.",
    "interrupted": "The run was interrupted: this is what it had written so far.",
    "unknown": "The run directory contains no manifest.json: the report is of its other files.",
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


def headline(run: RunRecord) -> Headline:
    """Give the head, from the manifest or else from the experiment."""
    manifest, state = run.manifest, str(run.manifest.get("state") or "unknown")
    seed = look(manifest if "seed" in manifest else run.settings, "seed")
    facts = {
        "Started": _moment(str(manifest.get("started") or "")),
        "Duration": duration(number(manifest, "seconds")),
        "Test set": "" if run.has_test else "none",
        "Seed": ABSENT if seed is None else str(seed),
    }
    return Headline(
        name=str(manifest.get("name") or run.settings.get("name") or run.path.resolve().name),
        state=state,
        subject=_subject(run),
        facts=tuple((name, value) for name, value in facts.items() if value not in ("", ABSENT)),
        notice=str(manifest.get("error") or _NOTICES.get(state, "")),
    )


def _moment(started: str) -> str:
    try:
        return f"{datetime.fromisoformat(started):%d %B %Y, %H:%M} UTC".lstrip("0")
    except ValueError:
        return started


def _subject(run: RunRecord) -> str:
    clients = number(run.manifest, "data", "clients") or number(run.settings, "data", "clients")
    how = look(run.settings, "data", "partition")
    parts = [
        look(run.settings, "strategy", "name"),
        look(run.settings, "model", "class"),
        look(run.manifest, "data", "dataset") or look(run.settings, "data", "dataset"),
        plural(int(clients), "client") + (f" ({how})" if how else "") if clients else None,
    ]
    return " \N{MIDDLE DOT} ".join(str(part) for part in parts if part)
