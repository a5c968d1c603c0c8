"""The manifest in words: what else one must know to run the same thing again."""

from __future__ import annotations

from typing import Any, TypeAlias

from flsimulation.report.formats import count, size
from flsimulation.report.log import RunLog, look, number

Pairs: TypeAlias = list[tuple[str, str]]
"""Names and values."""


def details(log: RunLog) -> list[tuple[str, Pairs]]:
    """Give the manifest's lists with their titles, those that are not empty."""
    found = {
        "Data": _data(log),
        "Model": _model(log),
        "Host": _host(log),
        "Versions": _texts(look(log.manifest, "versions")),
    }
    return [(title, pairs) for title, pairs in found.items() if pairs]


def _data(log: RunLog) -> Pairs:
    data = look(log.manifest, "data")
    classes = [str(name) for name in look(data, "classes") or ()]
    return _present(
        ("Data set", look(data, "dataset")),
        ("Training examples", number(data, "train-examples")),
        ("Test examples", number(data, "test-examples")),
        ("Classes", ", ".join(classes)),
        ("SHA-256", look(data, "digest")),
    )


def _model(log: RunLog) -> Pairs:
    return _present(
        ("Class", look(log.manifest, "model", "class")),
        ("Parameters", number(log.manifest, "model", "parameters")),
        ("SHA-256 of the weights", look(log.manifest, "weights-sha256")),
    )


def _host(log: RunLog) -> Pairs:
    host = look(log.manifest, "host")
    memory = number(host, "memory-bytes")
    return _present(
        ("System", look(host, "system")),
        ("Processors", number(host, "processor-count")),
        ("Memory", size(memory) if memory else None),
        ("GPU", look(log.manifest, "gpu")),
    )


def _present(*pairs: tuple[str, Any]) -> Pairs:
    return [
        (name, value if isinstance(value, str) else count(value)) for name, value in pairs if value
    ]


def _texts(table: object) -> Pairs:
    return [(str(k), str(v)) for k, v in table.items()] if isinstance(table, dict) else []
