"""Panels with a row for each series: the clients, the alerts, the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.models import common, dashboard, table
from grafana_foundation_sdk.models.dashboard import FieldColorModeId

from monitoring.panels import (
    NOTHING,
    Query,
    Says,
    Steps,
    field_config,
    mappings_of,
    override,
    panel,
    target,
    threshold_steps,
)


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    source: str
    """A label, or ``Value #A`` for the values of the query A."""
    unit: str = ""
    decimals: int | None = None
    width: int | None = None
    """In pixels."""
    steps: Steps = ()
    """Colours of the text, by the value."""
    mappings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Texts and colours of values."""
    links: Sequence[dashboard.DashboardLink] = ()
    gauge: bool = False
    """Whether a bar shows the value beside the column's highest."""


def rows(
    says: Says,
    queries: Sequence[Query],
    columns: Sequence[Column],
    sort: Sequence[tuple[str, bool]] = (),
) -> dashboard.Panel:
    """Table of a row for each value of the first column's label.

    Parameters
    ----------
    says : Says
        What the panel says of itself.
    queries : sequence of Query
        With several, their series are joined by the first column's label.
    columns : sequence of Column
        Those that are shown, in this order.
    sort : sequence of (title, descending)
        By which columns the rows are sorted.
    """
    config = field_config(says, FieldColorModeId.THRESHOLDS)
    config.custom = common.TableFieldOptions(
        cell_options=common.TableAutoCellOptions(), align=common.FieldTextAlignment.LEFT
    )
    sorted_by = [common.TableSortByFieldState(display_name=t, desc=d) for t, d in sort]
    options = table.Options(sort_by=sorted_by or None, cell_height=common.TableCellHeight.SM)
    targets = [target(i, q, instant=True, as_table=True) for i, q in enumerate(queries)]
    made = panel("table", says, targets, config, options)
    made.field_config.overrides = [_override(column) for column in columns]
    made.transformations = _transformations(columns, joined=len(queries) > 1)
    return made


def _transformations(
    columns: Sequence[Column], joined: bool
) -> list[dashboard.DataTransformerConfig]:
    """Join the queries, then keep, order and name the columns."""
    sources = [column.source for column in columns]
    join = {"byField": sources[0], "mode": "outer"}
    steps: list[tuple[str, dict[str, Any]]] = [("joinByField", join)] if joined else []
    steps += [
        ("filterFieldsByName", {"include": {"names": sources}}),
        (
            "organize",
            {
                "indexByName": {source: place for place, source in enumerate(sources)},
                "renameByName": {column.source: column.title for column in columns},
            },
        ),
    ]
    return [
        dashboard.DataTransformerConfig(id_val=name, options=options) for name, options in steps
    ]


def _override(column: Column) -> Any:
    # Without a text of its own an empty cell would show the panel's.
    properties: dict[str, Any] = {"noValue": NOTHING}
    if column.unit:
        properties["unit"] = column.unit
    if column.decimals is not None:
        properties["decimals"] = column.decimals
    if column.width is not None:
        properties["custom.width"] = column.width
    if column.steps:
        properties["thresholds"] = threshold_steps(column.steps)
    if column.mappings:
        properties["mappings"] = mappings_of(column.mappings)
    if column.steps or column.mappings:
        properties["custom.cellOptions"] = common.TableColorTextCellOptions()
    if column.gauge:
        properties["custom.cellOptions"] = common.TableBarGaugeCellOptions(
            mode=common.BarGaugeDisplayMode.BASIC, value_display_mode=common.BarGaugeValueMode.TEXT
        )
        properties["min"] = 0
    if column.links:
        properties["links"] = list(column.links)
    return override(column.title, properties)
