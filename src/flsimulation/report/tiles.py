"""The numbers at the top of the page."""

from __future__ import annotations

from dataclasses import dataclass

from flsimulation.report.formats import ABSENT, count, score, size
from flsimulation.report.log import RunLog, look, number
from flsimulation.report.scores import failure_counts


@dataclass(frozen=True)
class Tile:
    """One number at the top of the page."""

    label: str
    value: str
    note: str = ""


def tiles(log: RunLog) -> list[Tile]:
    """Give the run's main numbers, those that there are."""
    found = [*_final(log), _rounds(log), *_sizes(log), _failures(log)]
    return [tile for tile in found if tile.value != ABSENT]


def _final(log: RunLog) -> list[Tile]:
    """Take the newest accuracy and loss: the test set's, else the clients' own."""
    names = {"central": "test", "federated": "federated"}
    found: dict[str, Tile] = {}
    for source, name in names.items():
        for metric in ("accuracy", "loss"):
            for record in reversed(log.rounds):
                if (value := number(record, source, metric)) is not None:
                    note = f"after round {record['round']}"
                    label = f"{name} {metric}".capitalize()
                    found.setdefault(metric, Tile(label, score(metric, value), note))
                    break
    return [found[metric] for metric in ("accuracy", "loss") if metric in found]


def _rounds(log: RunLog) -> Tile:
    asked = number(log.settings, "strategy", "rounds")
    return Tile("Rounds", count(len(log.rounds)), f"of {count(asked)}" if asked else "")


def _sizes(log: RunLog) -> list[Tile]:
    clients = number(log.manifest, "data", "clients") or number(log.settings, "data", "clients")
    cohorts = [len(look(record, "cohort") or ()) for record in log.rounds]
    model = look(log.manifest, "model", "class") or look(log.settings, "model", "class")
    moved = sum(number(r, "bytes", way) or 0 for r in log.rounds for way in ("down", "up"))
    return [
        Tile("Clients", count(clients), f"{max(cohorts):,} a round" if cohorts else ""),
        Tile("Parameters", count(number(log.manifest, "model", "parameters")), str(model or "")),
        Tile("Peak memory", size(number(log.manifest, "peak-memory-bytes"))),
        Tile("Traffic", size(moved) if moved else ABSENT, "all messages"),
    ]


def _failures(log: RunLog) -> Tile:
    counts = failure_counts(log)
    reasons = sorted({reason for row in counts.values() for reason in row})
    total = sum(row.total() for row in counts.values())
    return Tile("Failures", count(total) if log.rounds or total else ABSENT, ", ".join(reasons))
