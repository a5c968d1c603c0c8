"""The manifest in words: what else one must know to run the same thing again."""

from __future__ import annotations

from typing import Any, TypeAlias

from flsimulation.report.formats import count, size
from flsimulation.rundir import RunRecord, look, number

Pairs: TypeAlias = list[tuple[str, str]]
"""Names and values."""

_SECURE_PHASES = ("keys", "shares", "train", "unmask")


def details(run: RunRecord) -> list[tuple[str, Pairs]]:
    """Give the manifest's lists with their titles, those that are not empty."""
    found = {
        "Data": _data(run),
        "Model": _model(run),
        "Secure aggregation": _secure(run),
        "Host": _host(run),
        "Versions": _texts(look(run.manifest, "versions")),
    }
    return [(title, pairs) for title, pairs in found.items() if pairs]


def _data(run: RunRecord) -> Pairs:
    data = look(run.manifest, "data")
    classes = [str(name) for name in look(data, "classes") or ()]
    return _present(
        ("Data set", look(data, "dataset")),
        ("Training examples", number(data, "train-examples")),
        ("Test examples", number(data, "test-examples") or _no_test(run)),
        ("Sites", ", ".join(run.site_names)),
        ("Own train keys", "; ".join(_own_keys(data))),
        ("Classes", ", ".join(classes)),
        ("SHA-256", look(data, "digest")),
    )


def _own_keys(data: object) -> list[str]:
    """``berlin epochs 2, batch-size 8`` for each site that trains in its own way."""
    sites = look(data, "train-sites")
    tables = sites.items() if isinstance(sites, dict) else ()
    return [f"{site} {', '.join(f'{k} {v}' for k, v in _texts(own))}" for site, own in tables]


def _no_test(run: RunRecord) -> str | None:
    return None if run.has_test else "none: there is no test set (data.test)"


def _model(run: RunRecord) -> Pairs:
    return _present(
        ("Class", look(run.manifest, "model", "class")),
        ("Parameters", number(run.manifest, "model", "parameters")),
        ("SHA-256 of the weights", look(run.manifest, "weights-sha256")),
    )


def _secure(run: RunRecord) -> Pairs:
    """Whether updates were added by secure aggregation, and how many clients dropped out in which phase."""
    if not look(run.manifest, "secure-aggregation"):
        return []
    added = [line["secure"] for line in run.rounds if line.get("secure")]
    counts = {phase: sum(own.get(phase, 0) for own in added) for phase in _SECURE_PHASES}
    dropped = [f"{count(number)} in {phase}" for phase, number in counts.items() if number]
    last = added[-1] if added else None
    return _present(
        ("Updates", "added; the server saw no single one"),
        ("Neighbours of a client", number(last, "neighbours")),
        ("Threshold", number(last, "threshold")),
        ("Dropped out", ", ".join(dropped) or "no client" if added else None),
    )


def _host(run: RunRecord) -> Pairs:
    host = look(run.manifest, "host")
    memory = number(host, "memory-bytes")
    return _present(
        ("System", look(host, "system")),
        ("Processors", number(host, "processor-count")),
        ("Memory", size(memory) if memory else None),
        ("GPU", look(run.manifest, "gpu")),
    )


def _present(*pairs: tuple[str, Any]) -> Pairs:
    return [
        (name, value if isinstance(value, str) else count(value)) for name, value in pairs if value
    ]


def _texts(table: object) -> Pairs:
    return [(str(k), str(v)) for k, v in table.items()] if isinstance(table, dict) else []
