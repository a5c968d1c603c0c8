"""A dashboard from rows of panels: places, ids, links, time range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.dashboard import DashboardLink, DashboardLinkType

from monitoring.panels import BLUE, DATASOURCE
from monitoring.promql import one_line, promql

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


def _to_client(partition: str) -> DashboardLink:
    return _link(
        title=f"Client ${{{partition}}}",
        type_val=DashboardLinkType.LINK,
        url=f"/d/{CLIENT_UID}?var-partition=${{{partition}}}&${{__url_time_range}}",
    )


TO_CLIENT = _to_client("__field.labels.partition")
"""From a series to the dashboard of its client."""
ROW_TO_CLIENT = _to_client("__value.raw")
"""From a cell that holds a partition to the dashboard of its client."""

_OTHERS = _link(
    title="Dashboards of this federation",
    type_val=DashboardLinkType.DASHBOARDS,
    icon="external link",
    tooltip="Glance, one client, resources",
    url="",
    tags=[TAG],
    keep_time=True,
)


def _runs() -> dashboard.AnnotationQuery:
    """A mark where each run began: the metric's value is the time."""
    mark = dashboard.AnnotationQuery(
        name="Runs",
        datasource=DATASOURCE,
        icon_color=BLUE,
        expr=one_line(
            promql("""
                1000 * fl_run_started_timestamp_seconds{job="superlink"}
                  * on(instance) group_left(name, strategy) fl_run_info > 0
            """)
        ),
        step="5s",
        use_value_for_time=True,
        title_format="a run begins",
        text_format="{{name}}, {{strategy}}",
    )
    mark.placement = None  # type: ignore[assignment]  # the SDK's one value hides it in a menu
    return mark


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
        annotations=dashboard.AnnotationContainer(list_val=[_runs()]),
        links=[_OTHERS],
    )
