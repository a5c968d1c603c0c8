"""The numbers at the top of the page."""

from __future__ import annotations

from dataclasses import dataclass

from flsimulation.events import source_of
from flsimulation.report.formats import ABSENT, count, heading, score, size
from flsimulation.report.scores import failure_counts, own_metric
from flsimulation.rundir import RunRecord, look, number

_NAMES = {"central": "test", "federated": "federated"}


@dataclass(frozen=True)
class Tile:
    """One number at the top of the page."""

    label: str
    value: str
    note: str = ""


def tiles(run: RunRecord) -> list[Tile]:
    """Give the run's main numbers, those that there are."""
    found = [*_final(run), _rounds(run), *_sizes(run), _failures(run), _epsilon(run)]
    return [tile for tile in found if tile.value != ABSENT]


def _final(run: RunRecord) -> list[Tile]:
    """Take the main scores of the last global model that was evaluated."""
    record = run.last_evaluated
    if (source := source_of(record)) is None:
        return []
    name, note = _NAMES[source], f"after round {record['round']}"
    return [
        Tile(heading(f"{name} {metric}"), score(metric, number(record, source, metric)), note)
        for metric in ("accuracy", own_metric(run), "loss")
        if metric is not None
    ]


def _rounds(run: RunRecord) -> Tile:
    asked = number(run.settings, "strategy", "rounds")
    return Tile("Rounds", count(len(run.rounds)), f"of {count(asked)}" if asked else "")


def _epsilon(run: RunRecord) -> Tile:
    last = next((r for r in reversed(run.rounds) if look(r, "privacy")), {})
    spent, delta = number(last, "privacy", "epsilon"), number(last, "privacy", "delta")
    mode = look(run.settings, "privacy", "mode")
    note = f"{mode} privacy, delta {delta:g}" if delta is not None else ""
    return Tile("Epsilon", ABSENT if spent is None else f"{spent:.4g}", note)


def _sizes(run: RunRecord) -> list[Tile]:
    clients = number(run.manifest, "data", "clients") or number(run.settings, "data", "clients")
    cohorts = [len(look(record, "cohort") or ()) for record in run.rounds]
    model = look(run.manifest, "model", "class") or look(run.settings, "model", "class")
    moved = sum(number(r, "bytes", way) or 0 for r in run.rounds for way in ("down", "up"))
    return [
        Tile("Clients", count(clients), f"{max(cohorts):,} a round" if cohorts else ""),
        Tile("Parameters", count(number(run.manifest, "model", "parameters")), str(model or "")),
        Tile("Peak memory", size(number(run.manifest, "peak-memory-bytes"))),
        Tile("Traffic", size(moved) if moved else ABSENT, "all messages"),
    ]


def _failures(run: RunRecord) -> Tile:
    counts = failure_counts(run)
    reasons = sorted({reason for row in counts.values() for reason in row})
    total = sum(row.total() for row in counts.values())
    return Tile("Failures", count(total) if run.rounds or total else ABSENT, ", ".join(reasons))
