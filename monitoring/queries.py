"""Every expression that a dashboard or a rule asks Prometheus for, ready to be sent to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from monitoring.alerts import ALERTS
from monitoring.client import client
from monitoring.federation import federation
from monitoring.panels import FEW_CLIENTS
from monitoring.recording import RECORDINGS, RUNNING
from monitoring.resources import resources

DASHBOARDS = {"federation": federation, "client": client, "resources": resources}

_SILENT = re.compile(
    rf"and on\(\) {RUNNING} == 1\s*$"  # answers during a run only
    rf"|> {FEW_CLIENTS}\s*$"  # of many clients only
    r"|ALERTS\{"  # of what is wrong only
    r"|partition=\"\"\}\)$"  # of clients without a partition only
    r"|fl_privacy_"  # of runs with differential privacy only
)


class Asked(NamedTuple):
    """An expression and where it stands."""

    source: str
    """``panel federation: Loss``, ``recording run:running`` or ``alert ClientDown``."""
    expression: str
    answers: bool
    """Whether it gives data after a healthy run of a few clients."""


def panels(dashboard: Dashboard) -> list[Panel]:
    """The dashboard's panels, without its rows' headings."""
    return [panel for panel in dashboard.panels or [] if isinstance(panel, Panel)]


def queries(partition: str = "0", seconds: int = 900) -> Iterator[Asked]:
    """Expressions of all panels and rules, with Grafana's variables filled in.

    Parameters
    ----------
    partition : str
        What the dashboard "One client" is set to.
    seconds : int
        The time range that the dashboards show: ``$__range``.
    """
    values = {"partition": partition, "__range": f"{seconds}s"}
    for name, make in DASHBOARDS.items():
        for panel in panels(make()):
            for target in panel.targets or []:
                expression = filled(getattr(target, "expr", ""), values)
                yield Asked(f"panel {name}: {panel.title}", expression, _answers(expression))
    for rule in RECORDINGS:
        yield Asked(f"recording {rule.name}", rule.expression, _answers(rule.expression))
    for alert in ALERTS:
        yield Asked(f"alert {alert.name}", alert.expression, False)


def _answers(expression: str) -> bool:
    return _SILENT.search(expression) is None


def filled(expression: str, values: dict[str, str]) -> str:
    """The expression with its variables replaced; an unknown one raises ``KeyError``."""
    return re.sub(
        r"\$\{?([a-z_]+)\}?",
        lambda found: values[found.group(1)],
        expression,
    )
