"""The rules in the two forms that Prometheus and Grafana read."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, expr
from grafana_foundation_sdk.models.alerting import Query, RelativeTimeRange
from grafana_foundation_sdk.models.prometheus import Dataquery, QueryEditorMode

from monitoring.alerts import ALERTS, Alert
from monitoring.panels import DATASOURCE
from monitoring.promql import one_line
from monitoring.queries import DASHBOARDS, panels
from monitoring.recording import GROUPS

NOTICE = "# Made by monitoring/generate.py; change the code it reads, then run it again.\n"
FOLDER = "FLSimulation alerts"
"""Not the dashboards' own: Grafana looks a folder up by its title and, where there is none, creates
it. Two that do so at the same time create two."""


def prometheus_rules() -> str:
    """Text of prometheus/alerts.yml: the recording rules, then the alerts that use them."""
    groups: list[dict[str, Any]] = [
        {"name": name, "rules": [{"record": r.name, "expr": r.expression} for r in rules]}
        for name, rules in GROUPS.items()
    ]
    groups.append({"name": "alerts", "rules": [_prometheus_alert(alert) for alert in ALERTS]})
    return NOTICE + _yaml({"groups": groups})


def grafana_rules() -> str:
    """Text of the alert rules that Grafana loads when it starts."""
    group = {
        "orgId": 1,
        "name": "federation",
        "folder": FOLDER,
        "interval": "10s",  # Grafana's shortest
        "rules": [_grafana_alert(alert) for alert in ALERTS],
    }
    return NOTICE + _yaml({"apiVersion": 1, "groups": [group]})


def _prometheus_alert(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": _annotations(alert, "$value"),
    }


def _grafana_alert(alert: Alert) -> dict[str, Any]:
    asked = Dataquery(
        ref_id="A",
        datasource=DATASOURCE,
        expr=one_line(alert.expression),
        instant=True,
        range_val=False,
        editor_mode=QueryEditorMode.CODE,
    )
    above = expr.ExprTypeThresholdConditionsEvaluator(type_val="gt", params=[0])
    condition = expr.TypeThreshold(
        ref_id="B",
        datasource=common.DataSourceRef(type_val="__expr__", uid="__expr__"),
        expression="A",
        conditions=[expr.ExprTypeThresholdConditions(evaluator=above)],
    )
    lately = RelativeTimeRange(from_val=600, to=0)
    queries = [
        Query(ref_id="A", datasource_uid=DATASOURCE.uid, model=asked, relative_time_range=lately),
        Query(ref_id="B", datasource_uid="__expr__", model=condition, relative_time_range=lately),
    ]
    return {
        "uid": "flsim" + re.sub("[A-Z]", lambda letter: f"-{letter.group().lower()}", alert.name),
        "title": alert.name,
        "condition": "B",
        "data": json.loads(json.dumps(queries, cls=JSONEncoder)),
        # No series is what a healthy federation answers with.
        "noDataState": "OK",
        "execErrState": "Error",
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": {
            **_annotations(alert, "$values.A.Value"),
            **panel_link(alert),
        },
        "isPaused": False,
    }


def _annotations(alert: Alert, value: str) -> dict[str, str]:
    return {
        "summary": re.sub(r"\bVALUE\b", value, alert.summary),
        "description": re.sub(r"\bVALUE\b", value, alert.description),
    }


def panel_link(alert: Alert) -> dict[str, str]:
    """The annotations by which Grafana links an alert with its panel; it takes both or neither.

    Raises
    ------
    LookupError
        If the dashboard has no panel of that title, or several.
    """
    if alert.dashboard not in DASHBOARDS:
        known = ", ".join(DASHBOARDS)
        raise LookupError(
            f"alert {alert.name}: dashboard must be one of {known}, got {alert.dashboard!r}"
        )
    board = DASHBOARDS[alert.dashboard]()
    ids = [panel.id_val for panel in panels(board) if panel.title == alert.panel]
    if len(ids) != 1:
        raise LookupError(
            f"alert {alert.name}: panel must be the title of one panel of the dashboard "
            f"{alert.dashboard}, got {alert.panel!r}, which {len(ids) or 'none'} of its panels have"
        )
    return {"__dashboardUid__": str(board.uid), "__panelId__": str(ids[0])}


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as a block, as a person would."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
