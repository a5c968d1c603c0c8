"""PromQL that is held against the one table: an unknown metric or label raises when it is written."""

from __future__ import annotations

import inspect
import re

from flsimulation.metrics.table import ALL_METRICS, Metric

_BY_NAME = {metric.name: metric for metric in ALL_METRICS}
_HISTOGRAM_SERIES = ("_bucket", "_sum", "_count")
_SCRAPED = {"job", "instance"}  # labels that Prometheus itself adds

_NAME = re.compile(r"(?<![\w:])fl_\w+(?![\w:])")  # names with a colon are recording rules
_SELECTOR = re.compile(r"(?<![\w:])(fl_\w+)\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


def metric(name: str) -> Metric:
    """Row of the table that exports the series ``name``.

    Raises
    ------
    LookupError
        If the table has no such series. A histogram is asked for by one of its own series.
    """
    found = _BY_NAME.get(name)
    if found is not None and found.kind != "histogram":
        return found
    for suffix in _HISTOGRAM_SERIES:
        found = _BY_NAME.get(name.removesuffix(suffix))
        if name.endswith(suffix) and found is not None and found.kind == "histogram":
            return found
    raise LookupError(f"flsimulation.metrics.server exports no series {name!r}")


def promql(text: str) -> str:
    """The expression without its indentation; its metrics and their labels are in the table.

    Raises
    ------
    LookupError
        If a metric is not in the table, or has no label that a selector asks for.
    """
    for name in _NAME.findall(text):
        metric(name)
    for name, matchers in _SELECTOR.findall(text):
        unknown = set(_MATCHER.findall(matchers)) - {*metric(name).labels, *_SCRAPED}
        if unknown:
            raise LookupError(f"{name} has no label {', '.join(sorted(unknown))}")
    return inspect.cleandoc(text).strip()


def one_line(expression: str) -> str:
    """The same expression on one line, as a panel holds it."""
    return " ".join(expression.split())
