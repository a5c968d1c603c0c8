"""A dashboard from rows of panels: places, ids, links, time range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.dashboard import DashboardLink, DashboardLinkType

WIDTH = 24  # columns of Grafana's grid
TAG = "flsimulation"
FEDERATION_UID, CLIENT_UID, RESOURCES_UID = "flsim-federation", "flsim-client", "flsim-resources"

Row = tuple[int, Sequence[tuple[int, dashboard.Panel]]]  # height, then width and panel of each


def row(height: int, *panels: dashboard.Panel, widths: Sequence[int] = ()) -> Row:
    """Panels beside each other, equally wide unless ``widths`` are given."""
    equal = [WIDTH // len(panels)] * len(panels)
    return height, list(zip(widths or equal, panels, strict=True))


def _link(**settings: Any) -> DashboardLink:
    link = DashboardLink(**settings)
    link.placement = None  # type: ignore[assignment]  # the SDK's one value hides it in a menu
    return link


TO_CLIENT = _link(
    title="Client ${__field.labels.partition}",
    type_val=DashboardLinkType.LINK,
    url=f"/d/{CLIENT_UID}?var-partition=${{__field.labels.partition}}&${{__url_time_range}}",
)
"""From a series to the dashboard of its client."""

_OTHERS = _link(
    title="Dashboards of this federation",
    type_val=DashboardLinkType.DASHBOARDS,
    icon="external link",
    tooltip="Glance, one client, resources",
    url="",
    tags=[TAG],
    keep_time=True,
)


def build(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    variables: Sequence[dashboard.VariableModel] = (),
) -> dashboard.Dashboard:
    """Put the rows under each other, as wide as the grid.

    Raises
    ------
    ValueError
        If a row does not fill the grid's width: the panels below would move up into the gap.
    """
    panels: list[dashboard.Panel | dashboard.RowPanel] = []
    top = 0
    for height, row in rows:
        left = 0
        for width, panel in row:
            panel.id_val = len(panels) + 1
            panel.grid_pos = dashboard.GridPos(h=height, w=width, x=left, y=top)
            panels.append(panel)
            left += width
        if left != WIDTH:
            raise ValueError(f"{title}: a row must be {WIDTH} columns wide, got {left}")
        top += height
    return dashboard.Dashboard(
        uid=uid,
        title=title,
        description=description,
        tags=[TAG],
        editable=False,
        refresh="5s",
        time=dashboard.DashboardDashboardTime(from_val="now-15m", to="now"),
        timepicker=dashboard.TimePickerConfig(refresh_intervals=["5s", "10s", "30s", "1m", "5m"]),
        graph_tooltip=dashboard.DashboardCursorSync.CROSSHAIR,
        panels=panels,
        templating=dashboard.DashboardDashboardTemplating(list_val=list(variables)),
        annotations=dashboard.AnnotationContainer(list_val=[]),
        links=[_OTHERS],
    )
