"""Every expression that a dashboard or a rule asks Prometheus for, ready to be sent to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from monitoring.alerts import ALERTS
from monitoring.client import client
from monitoring.federation import federation
from monitoring.recording import RECORDINGS
from monitoring.resources import resources

DASHBOARDS = {"federation": federation, "client": client, "resources": resources}


_OF_WHAT_IS_WRONG = ("Who is down", "Firing alerts")


class Asked(NamedTuple):
    """An expression and where it stands."""

    source: str
    """``panel federation: Loss now``, ``recording run:running`` or ``alert ClientDown``."""
    expression: str
    answers: bool
    """Whether it gives data in a healthy run that has done two rounds with evaluation."""


def panels(dashboard: Dashboard) -> list[Panel]:
    """The dashboard's panels, without its rows' headings."""
    return [panel for panel in dashboard.panels or [] if isinstance(panel, Panel)]


def queries(partition: str = "0", rate_interval: str = "20s") -> Iterator[Asked]:
    """Expressions of all panels and rules, with Grafana's variables filled in.

    Parameters
    ----------
    partition : str
        What the dashboard "One client" is set to.
    rate_interval : str
        What Grafana puts in for ``$__rate_interval``: at least four scrapes.
    """
    values = {"partition": partition, "__rate_interval": rate_interval}
    for name, make in DASHBOARDS.items():
        for panel in panels(make()):
            for target in panel.targets or []:
                expression = filled(getattr(target, "expr", ""), values)
                healthy = panel.title not in _OF_WHAT_IS_WRONG
                yield Asked(f"panel {name}: {panel.title}", expression, healthy)
    for rule in RECORDINGS:
        yield Asked(f"recording {rule.name}", rule.expression, True)
    for alert in ALERTS:
        yield Asked(f"alert {alert.name}", alert.expression, False)


def filled(expression: str, values: dict[str, str]) -> str:
    """The expression with its variables replaced; an unknown one raises ``KeyError``."""
    return re.sub(
        r"\$\{?([a-z_]+)\}?",
        lambda found: values[found.group(1)],
        expression,
    )
