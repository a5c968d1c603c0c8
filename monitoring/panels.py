"""The kinds of panel that the dashboards use, in Grafana's own schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.models import bargauge, common, dashboard, stat, statetimeline, table
from grafana_foundation_sdk.models.dashboard import FieldColorModeId
from grafana_foundation_sdk.models.prometheus import Dataquery, PromQueryFormat, QueryEditorMode
from grafana_foundation_sdk.models.timeseries import Options as GraphOptions

from monitoring.promql import one_line, promql

DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="flsim-prometheus")
"""The uid is fixed in grafana/provisioning/datasources."""

GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "text"
Steps = Sequence[tuple[float | None, str]]  # (from this value on, colour); None: from the lowest on


@dataclass(frozen=True)
class Query:
    """An expression and the legend of its series."""

    expression: str
    legend: str = "__auto"


@dataclass(frozen=True)
class Says:
    """What every panel must say: its title, what it shows, its unit, and what it shows if empty."""

    title: str
    description: str
    unit: str
    empty: str = "no run yet"
    decimals: int | None = None
    max: float | None = None


def numbers(
    says: Says,
    *queries: Query,
    steps: Steps = ((None, GREY),),
    mappings: Mapping[str, tuple[str, str]] | None = None,
    sparkline: bool = False,
    names: bool | None = None,
) -> dashboard.Panel:
    """Large numbers of this moment; with several queries each has its name, unless ``names``."""
    named = len(queries) > 1 if names is None else names
    mode = common.BigValueTextMode
    options = stat.Options(
        graph_mode=common.BigValueGraphMode.AREA if sparkline else common.BigValueGraphMode.NONE,
        color_mode=common.BigValueColorMode.VALUE,
        justify_mode=common.BigValueJustifyMode.CENTER,
        text_mode=mode.VALUE_AND_NAME if named else mode.VALUE,
        reduce_options=common.ReduceDataOptions(calcs=["lastNotNull"], values=False, fields=""),
        percent_change_color_mode=common.PercentChangeColorMode.STANDARD,
        orientation=common.VizOrientation.AUTO,
    )
    # A sparkline needs the whole time range, a number only the newest value.
    targets = [_target(i, q, instant=not sparkline) for i, q in enumerate(queries)]
    config = _field(says, FieldColorModeId.THRESHOLDS, steps)
    config.mappings = _mappings(mappings or {})
    return _panel("stat", says, targets, config, options)


def words(says: Says, query: Query, *labels: str, rows: int = 1) -> dashboard.Panel:
    """Labels of a series as text, those of up to ``rows`` series."""
    options = stat.Options(
        graph_mode=common.BigValueGraphMode.NONE,
        color_mode=common.BigValueColorMode.NONE,
        justify_mode=common.BigValueJustifyMode.CENTER,
        text_mode=common.BigValueTextMode.AUTO,
        reduce_options=common.ReduceDataOptions(
            calcs=["lastNotNull"],
            values=rows > 1,
            limit=rows if rows > 1 else None,
            fields=f"/^({'|'.join(labels)})$/",
        ),
        percent_change_color_mode=common.PercentChangeColorMode.STANDARD,
        orientation=common.VizOrientation.AUTO,
    )
    targets = [_target(0, query, instant=True, as_table=True)]
    return _panel("stat", says, targets, _field(says, FieldColorModeId.THRESHOLDS), options)


def graph(
    says: Says,
    *queries: Query,
    steps: Steps = (),
    stepped: bool = False,
    bars: bool = False,
    stacked: bool = False,
    links: Sequence[dashboard.DashboardLink] = (),
) -> dashboard.Panel:
    """Lines over time; ``stepped`` for values that hold until the next round."""
    custom = common.GraphFieldConfig(
        draw_style=common.GraphDrawStyle.BARS if bars else common.GraphDrawStyle.LINE,
        line_interpolation=common.LineInterpolation.STEP_AFTER
        if stepped
        else common.LineInterpolation.LINEAR,
        line_width=2,
        fill_opacity=60 if bars else 10,
        show_points=common.VisibilityMode.NEVER,
        axis_soft_min=0,
        stacking=common.StackingConfig(
            mode=common.StackingMode.NORMAL if stacked else common.StackingMode.NONE, group="A"
        ),
        thresholds_style=common.GraphThresholdsStyleConfig(
            mode=common.GraphThresholdsStyleMode.DASHED
            if steps
            else common.GraphThresholdsStyleMode.OFF
        ),
    )
    config = _field(says, FieldColorModeId.PALETTE_CLASSIC_BY_NAME, steps or ((None, GREY),))
    config.custom = custom
    config.links = list(links) or None
    options = GraphOptions(legend=_legend(), tooltip=_tooltip(common.TooltipDisplayMode.MULTI))
    targets = [_target(i, query) for i, query in enumerate(queries)]
    return _panel("timeseries", says, targets, config, options)


def bars(
    says: Says, query: Query, steps: Steps, links: Sequence[dashboard.DashboardLink] = ()
) -> dashboard.Panel:
    """One horizontal bar for each series, coloured by its value."""
    options = bargauge.Options(
        display_mode=common.BarGaugeDisplayMode.BASIC,
        value_mode=common.BarGaugeValueMode.COLOR,
        name_placement=common.BarGaugeNamePlacement.LEFT,
        sizing=common.BarGaugeSizing.AUTO,
        legend=common.VizLegendOptions(
            display_mode=common.LegendDisplayMode.LIST,
            placement=common.LegendPlacement.BOTTOM,
            calcs=[],
        ),
        reduce_options=common.ReduceDataOptions(calcs=["lastNotNull"], values=False, fields=""),
        orientation=common.VizOrientation.HORIZONTAL,
    )
    config = _field(says, FieldColorModeId.THRESHOLDS, steps)
    config.min_val = 0
    config.links = list(links) or None
    return _panel("bargauge", says, [_target(0, query, instant=True)], config, options)


def states(
    says: Says,
    query: Query,
    mappings: Mapping[str, tuple[str, str]],
    links: Sequence[dashboard.DashboardLink] = (),
) -> dashboard.Panel:
    """One band for each series, coloured by the state it was in."""
    options = statetimeline.Options(
        show_value=common.VisibilityMode.NEVER,
        align_value=common.TimelineValueAlignment.LEFT,
        legend=_legend(),
        tooltip=_tooltip(common.TooltipDisplayMode.SINGLE),
    )
    config = _field(says, FieldColorModeId.THRESHOLDS)
    config.custom = statetimeline.FieldConfig(axis_placement=common.AxisPlacement.AUTO)
    config.mappings = _mappings(mappings)
    config.links = list(links) or None
    return _panel("state-timeline", says, [_target(0, query)], config, options)


def rows(says: Says, query: Query, columns: Mapping[str, str]) -> dashboard.Panel:
    """Table with a row for each series and a column for each label, named as ``columns`` says."""
    custom = common.TableFieldOptions(
        cell_options=common.TableAutoCellOptions(), align=common.FieldTextAlignment.AUTO
    )
    config = _field(says, FieldColorModeId.THRESHOLDS)
    config.custom = custom
    panel = _panel(
        "table", says, [_target(0, query, instant=True, as_table=True)], config, table.Options()
    )
    panel.transformations = [
        dashboard.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True, "Value": True},
                "indexByName": {label: place for place, label in enumerate(columns)},
                "renameByName": dict(columns),
            },
        )
    ]
    return panel


def _panel(
    kind: str,
    says: Says,
    targets: Sequence[Dataquery],
    config: dashboard.FieldConfig,
    options: Any,
) -> dashboard.Panel:
    return dashboard.Panel(
        type_val=kind,
        title=says.title,
        description=says.description,
        datasource=DATASOURCE,
        targets=list(targets),
        options=options,
        field_config=dashboard.FieldConfigSource(defaults=config, overrides=[]),
    )


def _field(
    says: Says, mode: FieldColorModeId, steps: Steps = ((None, GREY),)
) -> dashboard.FieldConfig:
    return dashboard.FieldConfig(
        unit=says.unit,
        no_value=says.empty,
        decimals=says.decimals,
        max_val=says.max,
        color=dashboard.FieldColor(mode=mode),
        thresholds=dashboard.ThresholdsConfig(
            mode=dashboard.ThresholdsMode.ABSOLUTE,
            steps=[dashboard.Threshold(value=value, color=color) for value, color in steps],
        ),
    )


def _target(place: int, query: Query, instant: bool = False, as_table: bool = False) -> Dataquery:
    return Dataquery(
        ref_id="ABCDEFGH"[place],
        datasource=DATASOURCE,
        expr=one_line(promql(query.expression)),
        legend_format=query.legend,
        instant=instant,
        range_val=not instant,
        format_val=PromQueryFormat.TABLE if as_table else PromQueryFormat.TIME_SERIES,
        editor_mode=QueryEditorMode.CODE,
    )


def _mappings(texts: Mapping[str, tuple[str, str]]) -> list[dashboard.ValueMapping] | None:
    results = {
        value: dashboard.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(texts.items())
    }
    return [dashboard.ValueMap(options=results)] if results else None


def _legend() -> common.VizLegendOptions:
    return common.VizLegendOptions(
        show_legend=True,
        display_mode=common.LegendDisplayMode.LIST,
        placement=common.LegendPlacement.BOTTOM,
        calcs=[],
    )


def _tooltip(mode: common.TooltipDisplayMode) -> common.VizTooltipOptions:
    return common.VizTooltipOptions(mode=mode, sort=common.SortOrder.DESCENDING)
