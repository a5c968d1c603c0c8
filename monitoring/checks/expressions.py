"""Queries and expressions of an alert rule: what Grafana's evaluation of it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from monitoring.checks.files import Shipped
from monitoring.checks.shapes import (
    MAPPING,
    TEXT,
    Key,
    Shape,
    Violation,
    again,
    items,
    mapping,
    mappings,
    text,
)

_QUERY = "pkg/services/ngalert/models/alert_query.go"
_CONDITION = "pkg/services/ngalert/eval/eval.go: Create"
_EXPRESSIONS = "pkg/expr/reader.go: ReadQuery"
_THRESHOLD = "pkg/expr/threshold.go: NewThresholdCommand"
EXPRESSION = "__expr__"

QUERY = Shape(
    "pkg/services/provisioning/alerting/rules_types.go: QueryV1",
    {
        "refId": Key(TEXT, required=True),
        "queryType": Key(TEXT),
        "relativeTimeRange": Key(MAPPING),
        "datasourceUid": Key(TEXT, required=True),
        "model": Key(MAPPING, required=True),
    },
)
# The evaluators of a threshold, and how many numbers each compares with.
EVALUATORS = {
    **dict.fromkeys(("gt", "lt", "eq", "ne", "gte", "lte"), 1),
    **dict.fromkeys(
        ("within_range", "outside_range", "within_range_included", "outside_range_included"), 2
    ),
}
EXPRESSION_TYPES = {"math", "reduce", "resample", "classic_conditions", "threshold", "sql"}
REDUCERS = {"sum", "mean", "min", "max", "count", "last", "median"}


def check(shipped: Shipped, file: str, place: str, rule: dict[str, Any]) -> Iterator[Violation]:
    """Yield what is wrong with the queries of a rule and with its condition."""
    ref_ids = names(rule)
    if not ref_ids:
        source = "pkg/services/ngalert/models/alert_rule.go: ValidateAlertRule"
        yield Violation(file, place, "data has no query", source)
    for number, query in enumerate(mappings(rule, "data")):
        inner = f"{place}.data[{number}]"
        yield from QUERY.check(file, inner, query)
        yield from _check_query(shipped, file, inner, query, set(ref_ids))
    for _, name in again(ref_ids):
        yield Violation(file, place, f"refId {name} is there twice", _CONDITION)
    condition = text(rule, "condition")
    if not condition and not rule.get("record"):
        source = "pkg/services/provisioning/alerting/rules_types.go: AlertRuleV1.mapToModel"
        yield Violation(file, place, "condition is missing", source)
    elif condition and condition not in ref_ids:
        wrong = f"condition must be one of the refIds {', '.join(ref_ids)}, got {condition}"
        yield Violation(file, place, wrong, _CONDITION)


def names(rule: dict[str, Any]) -> list[str]:
    """The refIds of a rule's queries and expressions."""
    return [text(query, "refId") for query in mappings(rule, "data")]


def _check_query(
    shipped: Shipped, file: str, place: str, query: dict[str, Any], ref_ids: set[str]
) -> Iterator[Violation]:
    uid, model = text(query, "datasourceUid"), mapping(query, "model")
    if uid == EXPRESSION:
        for wrong, rule in _expression_faults(model, ref_ids):
            yield Violation(file, f"{place}.model", wrong, rule)
        return
    uids = {text(source, "uid") for _, _, source in shipped.listed("datasources", "datasources")}
    if uid and uid not in uids:
        message = f"datasourceUid {uid!r} is no datasource's uid"
        yield Violation(file, place, message, "pkg/services/ngalert/eval/eval.go: getExprRequest")
    if not isinstance(model.get("expr"), str) or not model.get("expr"):
        yield Violation(file, f"{place}.model", "expr is missing", f"{_QUERY}: GetQuery")
    span = mapping(query, "relativeTimeRange")
    ends = [span.get("from"), span.get("to", 0)]
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        message = f"relativeTimeRange must be whole seconds, got {ends[0]!r} to {ends[1]!r}"
        yield Violation(file, place, message, f"{_QUERY}: Duration.UnmarshalYAML")
    elif ends[0] <= ends[1]:
        message = f"relativeTimeRange must have from above to, got {ends[0]} and {ends[1]}"
        yield Violation(file, place, message, f"{_QUERY}: PreSave")


def _expression_faults(model: dict[str, Any], ref_ids: set[str]) -> Iterator[tuple[str, str]]:
    kind = text(model, "type")
    if kind not in EXPRESSION_TYPES:
        known = ", ".join(sorted(EXPRESSION_TYPES))
        yield f"type must be one of {known}, got {kind!r}", _EXPRESSIONS
        return
    asked = text(model, "expression")
    if kind == "math":
        used = set(re.findall(r"\$\{?(\w+)\}?", asked))
    else:
        used = {asked} if kind in {"threshold", "reduce", "resample"} else set()
    for name in sorted(used - ref_ids):
        known = ", ".join(sorted(ref_ids))
        yield f"expression must name one of the refIds {known}, got {name!r}", _EXPRESSIONS
    if kind == "threshold":
        yield from _threshold_faults(mappings(model, "conditions"))
    if kind == "reduce" and text(model, "reducer") not in REDUCERS:
        wrong = f"reducer must be one of {', '.join(sorted(REDUCERS))}"
        yield (
            f"{wrong}, got {text(model, 'reducer')!r}",
            "pkg/expr/mathexp/reduce.go: GetReduceFunc",
        )


def _threshold_faults(conditions: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    if len(conditions) != 1:
        wrong = f"a threshold must have one condition, got {len(conditions)}"
        yield wrong, "pkg/expr/threshold.go: UnmarshalThresholdCommand"
    for condition in conditions:
        evaluator = mapping(condition, "evaluator")
        name, numbers = text(evaluator, "type"), items(evaluator, "params")
        if name not in EVALUATORS:
            yield f"evaluator must be one of {', '.join(EVALUATORS)}, got {name}", _THRESHOLD
        elif len(numbers) != EVALUATORS[name]:
            wrong = f"evaluator {name} needs {EVALUATORS[name]} params, got {len(numbers)}"
            yield wrong, _THRESHOLD
