"""The tables of the page, in words."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flsimulation.events import SOURCES
from flsimulation.report.audited import HEADINGS, audit_of, guarantee, rows
from flsimulation.report.formats import ABSENT, count, duration, heading, listing, score, size
from flsimulation.report.scores import (
    PHASES,
    client_spread,
    failure_counts,
    metric_names,
    own_metric,
    phase_seconds,
)
from flsimulation.rundir import JsonObject, RunRecord, look, number

_ROUNDS = 1000
"""Most rounds that the table shows, the last ones; a browser is slow with more."""
_WORST = 6
_ERRORS = 50
_MEANINGS = {
    "error": "The client's code raised an exception.",
    "diverged": "The client's loss or weights were not finite.",
    "deadline": "The client was not done in time.",
    "lost": "No answer came, or the message could not be delivered.",
    "rejected": "Its answer was not what was requested, and was not used.",
}
"""`errors.FAILURE_REASONS`, in a sentence each."""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    """The columns that hold running text."""
    note: str = ""
    """What the table leaves out."""


def rounds_table(run: RunRecord) -> Table:
    """List the last rounds with all that was measured."""
    metrics = [(source, name) for source in SOURCES for name in metric_names(run, source)]
    metrics += [("train", name) for name in metric_names(run, "train") if name == "loss"]
    private = [("privacy", name) for name in ("epsilon", "clip") if _has(run, name)]
    columns = ("Round", *(heading(f"{s} {n}") for s, n in metrics))
    columns += tuple(name.capitalize() for _, name in private)
    rows = [
        (
            str(record["round"]),
            *(score(name, number(record, source, name)) for source, name in metrics),
            *(score(name, number(record, source, name)) for source, name in private),
            count(len(look(record, "cohort") or ())),
            count(sum((look(record, "failures") or {}).values())),
            duration(number(record, "seconds", "total")),
            size((number(record, "bytes", "down") or 0) + (number(record, "bytes", "up") or 0)),
        )
        for record in run.rounds[-_ROUNDS:]
    ]
    note = f"The last {_ROUNDS:,} rounds; rounds.jsonl has all {len(run.rounds):,}"
    columns = (*columns, "Clients", "Failures", "Time", "Traffic")
    return Table(columns, tuple(rows), note=note if len(run.rounds) > _ROUNDS else "")


def audit_table(run: RunRecord) -> Table | None:
    """List the attacks of the run's audit; None without one."""
    found = audit_of(run)
    if found is None:
        return None
    left_out = "".join(f"; left out: {note}" for note in found.notes)
    return Table(HEADINGS, tuple(rows(found)), note=f"{heading(guarantee(found))}{left_out}")


def _has(run: RunRecord, name: str) -> bool:
    """Whether a round's line has this number of its privacy."""
    return any(number(record, "privacy", name) is not None for record in run.rounds)


def phases_table(run: RunRecord) -> Table:
    """Sum up where the time went."""
    rows = [phase_seconds(record) for record in run.rounds]
    sums = {phase: sum(row[phase] for row in rows) for phase in PHASES}
    total = sum(sums.values()) or 1.0
    lines = [
        (name.capitalize(), duration(value), duration(value / len(rows)), f"{value / total:.0%}")
        for name, value in [*sums.items(), ("all", sum(sums.values()))]
    ]
    return Table(("Phase", "Sum", "A round", "Share"), tuple(lines))


def spread_table(run: RunRecord) -> Table | None:
    """Sum up how the clients differ; None where none was evaluated."""
    spread = client_spread(run)
    if spread is None:
        return None
    values = {
        "Mean": spread.mean,
        "Standard deviation": spread.std,
        "Best": spread.values[-1],
        "Median": statistics.median(spread.values),
        "Worst tenth, mean": spread.worst_tenth,
        "Worst": spread.values[0],
    }
    rows = tuple((name, score(spread.metric, value)) for name, value in values.items())
    return Table(("Over clients", spread.metric.capitalize()), rows)


def worst_table(run: RunRecord) -> Table | None:
    """List the clients that the model serves worst; None where no client was evaluated."""
    spread = client_spread(run)
    if spread is None:
        return None
    replies = {record["partition"]: record for record in run.evaluated}
    columns: dict[str, Callable[[int], str]] = {
        "Accuracy": lambda key: score("accuracy", number(replies[key], "accuracy")),
        "Loss": lambda key: score("loss", number(replies[key], "loss")),
        "Evaluated on": lambda key: count(number(replies[key], "num-examples")),
        "Holds": lambda key: _holds(run, key)[0],
        "Classes": lambda key: _holds(run, key)[1],
    }
    if (own := own_metric(run)) is not None:
        columns = {own: lambda key: score(own, number(replies[key], own)), **columns}
    worst = [key for key, _ in spread.ranked[:_WORST]]
    cells = {name: [cell(key) for key in worst] for name, cell in columns.items()}
    shown = {name: column for name, column in cells.items() if set(column) != {ABSENT}}
    rows = zip(map(run.client_name, worst), *shown.values(), strict=True)
    return Table(("Client", *shown), tuple(rows))


def _holds(run: RunRecord, partition: int) -> tuple[str, str]:
    """Examples and classes of a client's part."""
    row = look(run.manifest, "data", "histogram", str(partition)) or []
    classes = sum(1 for examples in row if examples) if len(row) > 1 else None
    return count(sum(row) if row else None), count(classes)


def reasons_table(run: RunRecord) -> Table | None:
    """Count the failures by reason; None where there are none."""
    total: Counter[str] = sum(failure_counts(run).values(), Counter())
    rows = [(reason, count(n), _MEANINGS.get(reason, ABSENT)) for reason, n in total.most_common()]
    return Table(("Reason", "Times", "Meaning"), tuple(rows), words=("Meaning",)) if rows else None


def errors_table(run: RunRecord) -> Table | None:
    """Group the failures by what they say, the most frequent first; None without any text."""
    groups: dict[tuple[str, str], list[JsonObject]] = {}
    for record in run.failures:
        key = (str(record["reason"]), str(record.get("error") or ABSENT))
        groups.setdefault(key, []).append(record)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    rows = [
        (reason, error, count(len(found)), _each(found, "partition"), _each(found, "round"))
        for (reason, error), found in ordered[:_ERRORS]
    ]
    columns = ("Reason", "Error", "Times", "Clients", "Rounds")
    return Table(columns, tuple(rows), words=("Error", "Clients", "Rounds")) if rows else None


def _each(records: Iterable[JsonObject], key: str) -> str:
    return listing(sorted({record[key] for record in records}))
