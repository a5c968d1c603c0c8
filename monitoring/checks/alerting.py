"""Alert rules: what Grafana's provisioning and its evaluation refuse or silently drop."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from monitoring.checks import expressions, templates
from monitoring.checks.files import Shipped
from monitoring.checks.shapes import (
    BOOLEAN,
    DURATION,
    LIST,
    MAPPING,
    ORG,
    TEXT,
    TEXT_LIST,
    TEXTS,
    UID,
    UID_RULE,
    Key,
    Kind,
    Shape,
    Violation,
    again,
    is_whole,
    keys,
    mapping,
    mappings,
    one_of,
    seconds,
    text,
    text_up_to,
    whole_from,
)

_TYPES = "pkg/services/provisioning/alerting/rules_types.go"
_MODEL = "pkg/services/ngalert/models/alert_rule.go"
_PROVISIONER = "pkg/services/provisioning/alerting/rules_provisioner.go"
_LENGTHS = "pkg/services/ngalert/store/alert_rule.go: AlertRuleMaxTitleLength"
_VALUES = "pkg/services/provisioning/values/values.go: ValueWithBracedVars"

DASHBOARD, PANEL = "__dashboardUid__", "__panelId__"

BASE_INTERVAL_SECONDS = 10
_INTERVAL = Kind(
    f"a positive multiple of {BASE_INTERVAL_SECONDS}s",
    lambda value: (seconds(value) or 0) > 0 and (seconds(value) or 0) % BASE_INTERVAL_SECONDS == 0,
)

FILE = Shape(
    "pkg/services/provisioning/alerting/types.go: AlertingFileV1",
    {
        "apiVersion": Key(whole_from(1)),
        **keys(
            "groups deleteRules contactPoints deleteContactPoints policies resetPolicies "
            "muteTimes deleteMuteTimes templates deleteTemplates",
            LIST,
        ),
    },
)
GROUP = Shape(
    f"{_TYPES}: AlertRuleGroupV1.MapToModel",
    {
        "orgId": Key(ORG),
        "name": Key(text_up_to(190), required=True, rule=_LENGTHS),
        "folder": Key(TEXT, required=True),
        "interval": Key(_INTERVAL, required=True, rule=f"{_MODEL}: ValidateRuleGroupInterval"),
        "rules": Key(LIST),
    },
)
_STATE_RULE = f"{_MODEL}: NoDataStateFromString, ErrStateFromString"
RULE = Shape(
    f"{_TYPES}: AlertRuleV1.mapToModel",
    {
        "uid": Key(UID, required=True, rule=UID_RULE),
        "title": Key(text_up_to(190), required=True, rule=_LENGTHS),
        "condition": Key(TEXT),
        "data": Key(LIST),
        "dashboardUid": Key(TEXT),
        "panelId": Key(whole_from(0)),
        "noDataState": Key(one_of("NoData", "Alerting", "OK", "KeepLast"), rule=_STATE_RULE),
        "execErrState": Key(one_of("Error", "Alerting", "OK", "KeepLast"), rule=_STATE_RULE),
        "for": Key(DURATION),
        "keepFiringFor": Key(DURATION),
        "missing_series_evals_to_resolve": Key(
            whole_from(1), rule=f"{_MODEL}: validateAlertRuleFields"
        ),
        "annotations": Key(TEXTS),
        "labels": Key(TEXTS),
        "isPaused": Key(BOOLEAN),
        "notification_settings": Key(MAPPING),
        "record": Key(MAPPING),
    },
)
NOTIFICATION_SETTINGS = Shape(
    f"{_TYPES}: NotificationSettingsV1.mapToModel",
    {
        "receiver": Key(TEXT, required=True),
        "group_by": Key(TEXT_LIST),
        "group_wait": Key(DURATION),
        "group_interval": Key(DURATION),
        "repeat_interval": Key(DURATION),
        "mute_time_intervals": Key(TEXT_LIST),
        "active_time_intervals": Key(TEXT_LIST),
    },
)


def check(shipped: Shipped) -> Iterator[Violation]:
    """Yield what is wrong with the alerting files and the alert rules in them."""
    for file, tree in shipped.alerting.items():
        yield from FILE.check(file, "", tree)
    for file, place, group in shipped.listed("alerting", "groups"):
        yield from GROUP.check(file, place, group)
        yield from _check_folder(shipped, file, place, group)
    for file, place, _, rule in _rules(shipped):
        yield from RULE.check(file, place, rule)
        yield from expressions.check(shipped, file, place, rule)
        yield from _check_texts(file, place, rule)
        yield from _check_panel(shipped, file, place, rule)
        if isinstance(rule.get("notification_settings"), dict):
            inner = f"{place}.notification_settings"
            yield from NOTIFICATION_SETTINGS.check(file, inner, rule["notification_settings"])
    yield from _check_unique(shipped)


def _rules(shipped: Shipped) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """File, place, group and rule of each."""
    for file, place, group in shipped.listed("alerting", "groups"):
        for number, rule in enumerate(mappings(group, "rules")):
            yield file, f"{place}.rules[{number}] {text(rule, 'title')}".rstrip(), group, rule


def _check_folder(
    shipped: Shipped, file: str, place: str, group: dict[str, Any]
) -> Iterator[Violation]:
    folder = text(group, "folder")
    if folder in {text(row[2], "folder") for row in shipped.listed("providers", "providers")} - {
        ""
    }:
        message = (
            f"folder {folder!r} is the dashboards' too; both are provisioned at the same time, and "
            "each creates the folder that it does not find by its title"
        )
        source = "pkg/services/provisioning/provisioning.go: starting; " + (
            f"{_PROVISIONER}: getOrCreateFolderByTitle"
        )
        yield Violation(file, place, message, source)


def _check_unique(shipped: Shipped) -> Iterator[Violation]:
    rules = list(_rules(shipped))
    uids = [(_org(group), text(rule, "uid")) for _, _, group, rule in rules]
    titles = [(*_folder(group), text(rule, "title")) for _, _, group, rule in rules]
    for names, what, source in (
        (uids, "uid", f"{_PROVISIONER}: provisionRule, which updates the first"),
        (titles, "title", f"{_MODEL}: ErrAlertRuleUniqueConstraintViolation"),
    ):
        for number, name in again(names):
            file, place, *_ = rules[number]
            yield Violation(file, place, f"{what} {name[-1]!r} is there twice", source)
    groups = list(shipped.listed("alerting", "groups"))
    for number, name in again([(*_folder(group), text(group, "name")) for *_, group in groups]):
        file, place, _ = groups[number]
        message = f"group {name[-1]!r} is there twice; the last interval counts for both"
        yield Violation(file, place, message, f"{_PROVISIONER}: Provision")


def _org(group: dict[str, Any]) -> str:
    return text(group, "orgId") or "1"


def _folder(group: dict[str, Any]) -> tuple[str, str]:
    return _org(group), text(group, "folder")


def _check_texts(file: str, place: str, rule: dict[str, Any]) -> Iterator[Violation]:
    ref_ids = set(expressions.names(rule))
    for part in ("annotations", "labels"):
        for name, content in mapping(rule, part).items():
            inner = f"{place}.{part}.{name}"
            # In a label, and only there, $$ is how one writes the $ of a template.
            template = str(content).replace("$$", "$") if part == "labels" else str(content)
            for wrong, source in templates.check(template, ref_ids):
                yield Violation(file, inner, wrong, source)
            if part == "annotations" and re.search(r"\$\{|\$\$|\$__\w+\{", str(content)):
                yield Violation(file, inner, "${...} and $$ are replaced at the start", _VALUES)
    for name in mapping(rule, "labels"):
        if str(name).startswith("__"):
            message = f"label {name} is reserved"
            source = f"{_MODEL}: LabelsUserCannotSpecify, InternalLabelNameSet"
            yield Violation(file, place, message, source)


def _check_panel(
    shipped: Shipped, file: str, place: str, rule: dict[str, Any]
) -> Iterator[Violation]:
    source = f"{_MODEL}: SetDashboardAndPanelFromAnnotations"
    notes = mapping(rule, "annotations")
    dashboard, panel = text(notes, DASHBOARD), text(notes, PANEL)
    if bool(dashboard) != bool(panel):
        missing = PANEL if dashboard else DASHBOARD
        message = f"{missing} is missing; it and {PANEL if panel else DASHBOARD} go together"
        yield Violation(file, place, message, source)
    if panel and not is_whole(panel):
        message = f"{PANEL} must be a whole number, got {panel!r}"
        yield Violation(file, place, message, source)
    if not dashboard or not is_whole(panel):
        return
    boards = [board for board in shipped.dashboards.values() if board.get("uid") == dashboard]
    ids = {text(row, "id") for board in boards for row in mappings(board, "panels")}
    if not boards:
        message = f"{DASHBOARD} {dashboard!r} is no dashboard's uid"
        yield Violation(file, place, message, "Grafana's documentation: Link alert rules to panels")
    elif panel not in ids:
        message = f"dashboard {dashboard} has no panel {panel}"
        yield Violation(file, place, message, "Grafana's documentation: Link alert rules to panels")
