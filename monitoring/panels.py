"""The kinds of panel that the dashboards use, in Grafana's own schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.models import common, dashboard, stat, statetimeline
from grafana_foundation_sdk.models.dashboard import FieldColorModeId
from grafana_foundation_sdk.models.prometheus import Dataquery, PromQueryFormat, QueryEditorMode
from grafana_foundation_sdk.models.timeseries import Options as GraphOptions

from monitoring.promql import one_line, promql

DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="flsim-prometheus")
"""The uid is fixed in grafana/provisioning/datasources."""

GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "text"
PURPLE = "purple"
NOTHING = "-"
"""What a cell without a value shows."""
FEW_CLIENTS = 12
"""Up to so many clients have a line each; of more, three lines say how they are spread."""
EXPECTED = "(max(fl_clients_expected) or vector(0))"
"""Not a count of series: while a run begins, many clients are few for a moment."""

COLOURS = {
    "central": BLUE,
    "federated": ORANGE,
    "down": BLUE,
    "up": GREEN,
    "train": BLUE,
    "aggregate": PURPLE,
    "evaluate": GREEN,
    "error": RED,
    "diverged": PURPLE,
    "deadline": ORANGE,
    "lost": YELLOW,
    "rejected": "dark-red",
    "server": GREY,
    "lowest": BLUE,
    "fastest": GREEN,
    "median": PURPLE,
    "highest": ORANGE,
    "slowest": RED,
    "no partition, highest": "dark-purple",
    "this client": BLUE,
    "its training": PURPLE,
    "all clients": ORANGE,
    "in use": BLUE,
    "limit": RED,
    "budget": RED,
    "clients down": RED,
    "at work": BLUE,
    "connected": GREEN,
}
"""Colours of the lines with these names; the lines of clients take Grafana's, one after another."""
VALUES = {
    "source": ("central", "federated"),
    "direction": ("down", "up"),
    "phase": ("train", "aggregate", "evaluate"),
    "reason": ("error", "diverged", "deadline", "lost", "rejected"),
}
"""Values of the labels that legends are made of."""

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
    soft_max: float | None = None
    """The axis reaches at least this far: Grafana's would reach to 100 where all values are 0."""


def by_client(
    expression: str,
    legend: str = "client {{partition}}",
    low: str = "lowest",
    high: str = "highest",
) -> tuple[Query, ...]:
    """A line for each client, or of many clients the lowest, the median and the highest."""
    few, many = (f"on() {EXPECTED} {sign} {FEW_CLIENTS}" for sign in ("<=", ">"))
    return (
        Query(f"({expression}) and {few}", legend),
        Query(f"min({expression}) and {many}", low),
        Query(f"quantile(0.5, {expression}) and {many}", "median"),
        Query(f"max({expression}) and {many}", high),
    )


def numbers(
    says: Says,
    *queries: Query,
    steps: Steps = ((None, GREY),),
    mappings: Mapping[str, tuple[str, str]] | None = None,
    names: bool | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> dashboard.Panel:
    """Large numbers of this moment; with several queries each has its name, unless ``names``.

    ``own`` are the properties of single numbers, by name, that differ from the panel's.
    """
    named = len(queries) > 1 if names is None else names
    mode = common.BigValueTextMode
    options = stat.Options(
        graph_mode=common.BigValueGraphMode.NONE,
        color_mode=common.BigValueColorMode.VALUE,
        justify_mode=common.BigValueJustifyMode.CENTER,
        text_mode=mode.VALUE_AND_NAME if named else mode.VALUE,
        reduce_options=common.ReduceDataOptions(calcs=["lastNotNull"], values=False, fields=""),
        percent_change_color_mode=common.PercentChangeColorMode.STANDARD,
        orientation=common.VizOrientation.AUTO,
    )
    targets = [target(i, q, instant=True) for i, q in enumerate(queries)]
    config = field_config(says, FieldColorModeId.THRESHOLDS, steps)
    config.mappings = [*mappings_of(mappings or {}), _empty(says)]
    made = panel("stat", says, targets, config, options)
    made.field_config.overrides = [override(name, values) for name, values in (own or {}).items()]
    return made


def words(says: Says, query: Query, *labels: str, rows: int = 1) -> dashboard.Panel:
    """Labels of a series as text, those of up to ``rows`` series."""
    options = stat.Options(
        graph_mode=common.BigValueGraphMode.NONE,
        color_mode=common.BigValueColorMode.NONE,
        justify_mode=common.BigValueJustifyMode.CENTER,
        text_mode=common.BigValueTextMode.VALUE,
        reduce_options=common.ReduceDataOptions(
            calcs=["lastNotNull"],
            values=rows > 1,
            limit=rows if rows > 1 else None,
            fields=f"/^({'|'.join(labels)})$/",
        ),
        percent_change_color_mode=common.PercentChangeColorMode.STANDARD,
        orientation=common.VizOrientation.AUTO,
    )
    targets = [target(0, query, instant=True, as_table=True)]
    return panel("stat", says, targets, field_config(says, FieldColorModeId.THRESHOLDS), options)


def graph(
    says: Says,
    *queries: Query,
    steps: Steps = (),
    stepped: bool = False,
    stacked: bool = False,
    legend_right: bool = False,
    links: Sequence[dashboard.DashboardLink] = (),
) -> dashboard.Panel:
    """Lines over time, whose legend has the last and the highest value of each.

    ``stepped`` is for values that hold until the next round, ``stacked`` for parts of a whole.
    """
    interpolation = common.LineInterpolation
    stacking, style = common.StackingMode, common.GraphThresholdsStyleMode
    config = field_config(says, FieldColorModeId.PALETTE_CLASSIC, steps or ((None, GREY),))
    config.custom = common.GraphFieldConfig(
        draw_style=common.GraphDrawStyle.LINE,
        line_interpolation=interpolation.STEP_AFTER if stepped else interpolation.LINEAR,
        line_width=1 if stacked else 2,
        fill_opacity=60 if stacked else 0,
        show_points=common.VisibilityMode.AUTO,  # a value without neighbours is seen too
        axis_soft_min=0,
        axis_soft_max=says.soft_max,
        stacking=common.StackingConfig(
            mode=stacking.NORMAL if stacked else stacking.NONE, group="A"
        ),
        thresholds_style=common.GraphThresholdsStyleConfig(
            mode=style.DASHED if steps else style.OFF
        ),
    )
    config.links = list(links) or None
    options = GraphOptions(
        legend=_legend(common.LegendPlacement.RIGHT if legend_right else None),
        tooltip=_tooltip(common.TooltipDisplayMode.MULTI),
    )
    targets = [target(i, query) for i, query in enumerate(queries)]
    made = panel("timeseries", says, targets, config, options)
    made.field_config.overrides = [
        override(name, {"color": dashboard.FieldColor(mode=FieldColorModeId.FIXED, fixed_color=c)})
        for name, c in _colours(queries).items()
    ]
    return made


def _colours(queries: Sequence[Query]) -> dict[str, str]:
    """Colours of the lines whose names are known before there is data."""
    names = [
        name for query in queries for name in VALUES.get(query.legend.strip("{}"), (query.legend,))
    ]
    return {name: COLOURS[name] for name in names if name in COLOURS}


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
        legend=common.VizLegendOptions(
            show_legend=True,
            display_mode=common.LegendDisplayMode.LIST,
            placement=common.LegendPlacement.BOTTOM,
            calcs=[],
        ),
        tooltip=_tooltip(common.TooltipDisplayMode.SINGLE),
    )
    config = field_config(says, FieldColorModeId.THRESHOLDS)
    config.custom = statetimeline.FieldConfig(axis_placement=common.AxisPlacement.AUTO)
    config.mappings = mappings_of(mappings)
    config.links = list(links) or None
    return panel("state-timeline", says, [target(0, query)], config, options)


def panel(
    kind: str,
    says: Says,
    targets: Sequence[Dataquery],
    config: dashboard.FieldConfig,
    options: Any,
) -> dashboard.Panel:
    """A panel of Grafana's plugin ``kind``."""
    return dashboard.Panel(
        type_val=kind,
        title=says.title,
        description=says.description,
        datasource=DATASOURCE,
        targets=list(targets),
        options=options,
        field_config=dashboard.FieldConfigSource(defaults=config, overrides=[]),
    )


def field_config(
    says: Says, mode: FieldColorModeId, steps: Steps = ((None, GREY),)
) -> dashboard.FieldConfig:
    """What holds for all of a panel's fields."""
    return dashboard.FieldConfig(
        unit=says.unit,
        no_value=says.empty,
        decimals=says.decimals,
        max_val=says.max,
        color=dashboard.FieldColor(mode=mode),
        thresholds=threshold_steps(steps),
    )


def threshold_steps(steps: Steps) -> dashboard.ThresholdsConfig:
    """Colours from certain values on."""
    return dashboard.ThresholdsConfig(
        mode=dashboard.ThresholdsMode.ABSOLUTE,
        steps=[dashboard.Threshold(value=value, color=color) for value, color in steps],
    )


def override(
    name: str, properties: Mapping[str, Any]
) -> dashboard.DashboardFieldConfigSourceOverrides:
    """What holds for the one field that is called ``name``."""
    return dashboard.DashboardFieldConfigSourceOverrides(
        matcher=dashboard.MatcherConfig(id_val="byName", options=name),
        properties=[
            dashboard.DynamicConfigValue(id_val=key, value=value)
            for key, value in properties.items()
        ],
    )


def target(place: int, query: Query, instant: bool = False, as_table: bool = False) -> Dataquery:
    """A query of a panel: for its whole time range, or for this moment."""
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


def mappings_of(texts: Mapping[str, tuple[str, str]]) -> list[dashboard.ValueMapping]:
    """Texts and colours of values."""
    results = {
        value: dashboard.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(texts.items())
    }
    return [dashboard.ValueMap(options=results)] if results else []


def _empty(says: Says) -> dashboard.ValueMapping:
    """The text of an empty panel in grey: Grafana's has the colour of the lowest values."""
    return dashboard.SpecialValueMap(
        options=dashboard.DashboardSpecialValueMapOptions(
            match=dashboard.SpecialValueMatch.NULL,
            result=dashboard.ValueMappingResult(text=says.empty, color=GREY, index=99),
        )
    )


def _legend(placement: common.LegendPlacement | None) -> common.VizLegendOptions:
    return common.VizLegendOptions(
        show_legend=True,
        display_mode=common.LegendDisplayMode.TABLE,
        placement=placement or common.LegendPlacement.BOTTOM,
        calcs=["lastNotNull", "max"],
    )


def _tooltip(mode: common.TooltipDisplayMode) -> common.VizTooltipOptions:
    return common.VizTooltipOptions(mode=mode, sort=common.SortOrder.DESCENDING)
