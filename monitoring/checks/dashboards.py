"""Dashboards: what Grafana refuses when it saves them, and references that lead nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from monitoring.checks.files import Shipped
from monitoring.checks.shapes import (
    UID,
    UID_RULE,
    Key,
    Kind,
    Shape,
    Violation,
    again,
    is_whole,
    items,
    keys,
    mapping,
    mappings,
    one_of,
    seconds,
    text,
    text_up_to,
)

_SERVICE = "pkg/services/dashboards/service/dashboard_service.go"
_READER = "pkg/services/provisioning/dashboards"
_SCHEMA = "apps/dashboard/pkg/migration/schemaversion: MIN_VERSION, LATEST_VERSION"
_MODEL = "kinds/dashboard/dashboard_kind.cue"
_LINKS = "Grafana: Configure data links, Manage dashboard links"
_MIN_REFRESH_SECONDS = 5
LATEST_SCHEMA = 42


def _is_refresh(value: Any) -> bool:
    length = seconds(value)
    return value in ("", "auto", False) or (length is not None and length >= _MIN_REFRESH_SECONDS)


_ANY = Kind("anything", lambda _: True)
_REFRESH = Kind(f"auto or a duration of at least {_MIN_REFRESH_SECONDS}s", _is_refresh)
_SCHEMA_VERSION = Kind(
    f"a whole number from 1 to {LATEST_SCHEMA}",
    lambda value: is_whole(value) and 1 <= int(value) <= LATEST_SCHEMA,
)
_BASICS = f"{_SERVICE}: ValidateBasicDashboardProperties"

BOARD = Shape(
    f"{_MODEL}: spec",
    {
        "id": Key(Kind("null", lambda _: False), rule=f"{_READER}/file_reader.go: saveDashboard"),
        "uid": Key(UID, required=True, rule=f"{_BASICS}; {UID_RULE}"),
        "title": Key(text_up_to(5000), required=True, rule=_BASICS),
        "schemaVersion": Key(_SCHEMA_VERSION, required=True, rule=_SCHEMA),
        "refresh": Key(_REFRESH, rule=f"{_SERVICE}: ValidateDashboardRefreshInterval"),
        **keys(
            "annotations description editable fiscalYearStartMonth gnetId graphTooltip links "
            "liveNow panels preload revision tags templating time timepicker timezone version "
            "weekStart",
            _ANY,
        ),
    },
)
VARIABLE = Shape(
    f"{_MODEL}: VariableModel",
    {
        "name": Key(
            Kind("letters, digits and _", lambda v: bool(re.fullmatch(r"[A-Za-z_]\w*", str(v)))),
            required=True,
        ),
        "type": Key(
            one_of(
                "query",
                "adhoc",
                "groupby",
                "constant",
                "datasource",
                "interval",
                "textbox",
                "custom",
            ),
            required=True,
        ),
        **keys(
            "allValue allowCustomValue auto auto_count auto_min current datasource "
            "definition description error hide includeAll label multi options query refresh "
            "regex skipUrlSync sort staticOptions staticOptionsOrder",
            _ANY,
        ),
    },
)
# The panels that are part of Grafana; others are plugins, and none is installed.
_PANELS = """
    alertlist annolist barchart bargauge candlestick canvas dashlist datagrid flamegraph gauge
    geomap heatmap histogram live logs news nodeGraph piechart row stat state-timeline
    status-history table text timeseries traces trend xychart
"""
PANELS = frozenset(_PANELS.split())
_OWN_SOURCES = {"-- Grafana --", "-- Mixed --", "-- Dashboard --", "grafana"}
_PANELS_RULE = "public/app/plugins/panel: the panels that are built in"
_GLOBALS = "public/app/features/variables and docs: Global variables"


def check(shipped: Shipped) -> Iterator[Violation]:
    """Yield what is wrong with the dashboards, one by one and together."""
    for file, board in shipped.dashboards.items():
        yield from BOARD.check(file, "", board)
        yield from _check_variables(shipped, file, board)
        yield from _check_panels(shipped, file, board)
        yield from _check_links(shipped, file, board)
        for step in items(mapping(board, "timepicker"), "refresh_intervals"):
            if not _is_refresh(step):
                message = f"refresh interval {step!r} is below {_MIN_REFRESH_SECONDS}s"
                source = "conf/defaults.ini: [dashboards] min_refresh_interval"
                yield Violation(file, "timepicker", message, source)
    for key, why in (("uid", "uid"), ("title", "title in one folder")):
        boards = list(shipped.dashboards.items())
        for number, name in again([text(board, key) for _, board in boards]):
            message = f"{why} {name!r} is there twice; Grafana saves neither"
            yield Violation(boards[number][0], "", message, f"{_READER}/validator.go: validate")


def panels(board: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and panel of each, those inside rows too."""
    for number, panel in enumerate(items(board, "panels")):
        if isinstance(panel, dict):
            place = f"panels[{number}] {panel.get('title', '')}".rstrip()
            yield place, panel
            for inner, child in panels(panel):
                yield f"{place}.{inner}", child


def _check_panels(shipped: Shipped, file: str, board: dict[str, Any]) -> Iterator[Violation]:
    found = list(panels(board))
    for place, panel in found:
        if not is_whole(panel.get("id")) or int(panel["id"]) < 1:
            message = f"id must be a whole number from 1 on, got {panel.get('id')!r}"
            yield Violation(file, place, message, f"{_MODEL}: Panel.id")
        if text(panel, "type") not in PANELS:
            message = f"type {text(panel, 'type')!r} is no panel that Grafana has built in"
            yield Violation(file, place, message, _PANELS_RULE)
        if "libraryPanel" in panel:
            message = "libraryPanel names a library panel, and none is provisioned"
            source = "pkg/services/librarypanels/librarypanels.go: ConnectLibraryPanelsForDashboard"
            yield Violation(file, place, message, source)
        grid = mapping(panel, "gridPos")
        x, width = text(grid, "x"), text(grid, "w")
        if not is_whole(x) or not is_whole(width) or not 0 <= int(x) < int(x) + int(width) <= 24:
            message = "gridPos must be within 24 columns"
            yield Violation(file, place, message, f"{_MODEL}: GridPos")
        for _, name in again([text(target, "refId") for target in mappings(panel, "targets")]):
            message = f"refId {name} is there twice"
            yield Violation(file, place, message, f"{_MODEL}: Target.refId")
        yield from _check_sources(shipped, file, place, panel)
    for number, name in again([text(panel, "id") for _, panel in found]):
        message = f"id {name} is there twice"
        yield Violation(file, found[number][0], message, f"{_MODEL}: Panel.id")


def _check_sources(
    shipped: Shipped, file: str, place: str, panel: dict[str, Any]
) -> Iterator[Violation]:
    uids = {text(source, "uid") for _, _, source in shipped.listed("datasources", "datasources")}
    for thing in (panel, *mappings(panel, "targets")):
        uid = text(mapping(thing, "datasource"), "uid")
        if uid and uid not in uids | _OWN_SOURCES and not uid.startswith("$"):
            message = f"datasource {uid!r} is no datasource's uid"
            yield Violation(file, place, message, f"{_MODEL}: DataSourceRef")


def _check_variables(shipped: Shipped, file: str, board: dict[str, Any]) -> Iterator[Violation]:
    variables = mappings(mapping(board, "templating"), "list")
    for number, variable in enumerate(variables):
        place = f"templating.list[{number}]"
        yield from VARIABLE.check(file, place, variable)
        yield from _check_sources(shipped, file, place, variable)
        if variable.get("type") == "query" and not variable.get("query"):
            yield Violation(file, place, "query is missing", VARIABLE.rule)
    names = [text(variable, "name") for variable in variables]
    for _, name in again(names):
        message = f"variable {name} is there twice"
        yield Violation(file, "templating.list", message, VARIABLE.rule)
    for place, panel in panels(board):
        for target in mappings(panel, "targets"):
            used = re.findall(r"\$\{?([A-Za-z_]\w*)", text(target, "expr"))  # not a group's $1
            for name in {name for name in used if not name.startswith("__")} - set(names):
                message = f"the query uses ${name}, which is no variable of this dashboard"
                yield Violation(file, place, message, _GLOBALS)


def _check_links(shipped: Shipped, file: str, board: dict[str, Any]) -> Iterator[Violation]:
    boards = {text(other, "uid"): other for other in shipped.dashboards.values()}
    tags = [tag for other in boards.values() for tag in items(other, "tags")]
    for number, link in enumerate(mappings(board, "links")):
        for tag in items(link, "tags") if link.get("type") == "dashboards" else []:
            if tag not in tags:
                message = f"no dashboard has the tag {tag!r}"
                yield Violation(file, f"links[{number}]", message, _LINKS)
    for place, url in _urls(board, ""):
        found = re.match(r"/d/([^/?]+)(?:/[^?]*)?(?:\?(.*))?$", url)
        if not found:
            continue
        if found[1] not in boards:
            message = f"leads to /d/{found[1]}, which is no dashboard's uid"
            yield Violation(file, place, message, _LINKS)
            continue
        there = {text(v, "name") for v in mappings(mapping(boards[found[1]], "templating"), "list")}
        for name in set(re.findall(r"(?:^|&)var-(\w+)=", found[2] or "")) - there:
            message = f"sets {name}, which is no variable of {found[1]}"
            yield Violation(file, place, message, _LINKS)


def _urls(tree: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, list):
        for number, item in enumerate(tree):
            yield from _urls(item, f"{place}[{number}]")
    elif isinstance(tree, dict):
        for key, item in tree.items():
            if key == "url" and isinstance(item, str):
                yield place, item
            yield from _urls(item, f"{place}.{key}".lstrip("."))
