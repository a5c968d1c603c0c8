"""Contact points, notification policies, mute timings: where alerts are sent, and whether at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from monitoring.checks.files import Shipped
from monitoring.checks.shapes import (
    BOOLEAN,
    DURATION,
    LIST,
    MAPPING,
    ORG,
    POSITIVE_DURATION,
    TEXT,
    TEXT_LIST,
    TEXTS,
    UID,
    Key,
    Shape,
    Violation,
    again,
    items,
    mapping,
    mappings,
    one_of,
    text,
)

_ALERTING = "pkg/services/provisioning/alerting"
_ROUTE = "grafana/alerting, definition/alertmanager_validation.go"
_RECEIVERS = "grafana/alerting, receivers/*/v1/config.go: NewConfig"
_DEFAULT = "pkg/setting/setting_unified_alerting.go: alertmanagerDefaultConfiguration"

DEFAULT_RECEIVER = "empty"
"""Grafana's own contact point, which sends nothing, since..."""
EMPTY_SINCE = (12, 4)
"""...this version; before, it sends e-mail and logs an error where no server for that is set."""

# Types of receivers, with the settings that each needs; "a|b" is either.
RECEIVERS = {
    "prometheus-alertmanager": "url",
    "dingding": "url",
    "discord": "url",
    "email": "addresses",
    "googlechat": "url",
    "jira": "api_url project issue_type",
    "kafka": "kafkaRestProxy kafkaTopic",
    "LINE": "token",
    "line": "token",
    "mqtt": "brokerUrl topic",
    "oncall": "url",
    "opsgenie": "apiKey",
    "pagerduty": "integrationKey",
    "pushover": "userKey apiToken",
    "sensugo": "url apikey",
    "slack": "url|token url|recipient",
    "sns": "topic_arn|target_arn|phone_number",
    "teams": "url",
    "telegram": "bottoken chatid",
    "threema": "gateway_id recipient_id api_secret",
    "victorops": "url",
    "webex": "",
    "webhook": "url",
    "wecom": "url|secret",
}

CONTACT_POINT = Shape(
    f"{_ALERTING}/contact_point_types.go: ContactPointV1.MapToModel",
    {"orgId": Key(ORG), "name": Key(TEXT, required=True), "receivers": Key(LIST, required=True)},
)
RECEIVER = Shape(
    f"{_ALERTING}/contact_point_types.go: ReceiverV1.mapToModel",
    {
        "uid": Key(UID, required=True),
        "type": Key(one_of(*RECEIVERS), required=True, rule=_RECEIVERS),
        "settings": Key(MAPPING, required=True),
        "disableResolveMessage": Key(BOOLEAN),
    },
)
_ROUTE_KEYS = {
    "receiver": Key(TEXT),
    "group_by": Key(TEXT_LIST),
    "match": Key(TEXTS),
    "match_re": Key(TEXTS),
    "matchers": Key(LIST),
    "object_matchers": Key(LIST),
    "mute_time_intervals": Key(TEXT_LIST),
    "active_time_intervals": Key(TEXT_LIST),
    "continue": Key(BOOLEAN),
    "routes": Key(LIST),
    "group_wait": Key(DURATION),
    "group_interval": Key(POSITIVE_DURATION, rule=f"{_ROUTE}: ValidateChild"),
    "repeat_interval": Key(POSITIVE_DURATION, rule=f"{_ROUTE}: ValidateChild"),
}
ROUTE = Shape("grafana/alerting, definition/alertmanager.go: Route", _ROUTE_KEYS)
POLICY = Shape(
    f"{_ALERTING}/notification_policy_types.go: NotificiationPolicyV1",
    {"orgId": Key(ORG), **_ROUTE_KEYS},
)
MUTE_TIME = Shape(
    f"{_ALERTING}/mute_times_types.go: MuteTimeV1",
    {"orgId": Key(ORG), "name": Key(TEXT, required=True), "time_intervals": Key(LIST)},
)
TIME_INTERVAL = Shape(
    "Alertmanager, timeinterval/timeinterval.go: TimeInterval",
    {
        "times": Key(LIST),
        "weekdays": Key(TEXT_LIST),
        "days_of_month": Key(TEXT_LIST),
        "months": Key(TEXT_LIST),
        "years": Key(TEXT_LIST),
        "location": Key(TEXT),
    },
)
TEMPLATE = Shape(
    f"{_ALERTING}/text_templates_types.go: TemplateV1",
    {"orgId": Key(ORG), "name": Key(TEXT, required=True), "template": Key(TEXT, required=True)},
)
_TIME = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d|24:00")
_ONLY_BELOW = {
    "matchers": ("match", "match_re", "matchers", "object_matchers"),
    "mute time intervals": ("mute_time_intervals",),
    "active time intervals": ("active_time_intervals",),
}


def check(shipped: Shipped) -> Iterator[Violation]:
    """Yield what is wrong with who is notified of alerts."""
    names = {DEFAULT_RECEIVER}
    for file, place, point in shipped.listed("alerting", "contactPoints"):
        names.add(text(point, "name"))
        yield from _check_contact_point(file, place, point)
    yield from _check_unique(shipped)
    intervals = set()
    for file, place, mute in shipped.listed("alerting", "muteTimes"):
        intervals.add(text(mute, "name"))
        yield from _check_mute_time(file, place, mute)
    for file, place, policy in shipped.listed("alerting", "policies"):
        yield from POLICY.check(file, place, policy)
        yield from _check_root(file, place, policy)
        yield from _check_route(file, place, policy, names, intervals)
    for file, place, template in shipped.listed("alerting", "templates"):
        yield from TEMPLATE.check(file, place, template)
    yield from _check_settings_of_rules(shipped, names, intervals)
    yield from _check_default(shipped)


def _check_contact_point(file: str, place: str, point: dict[str, Any]) -> Iterator[Violation]:
    yield from CONTACT_POINT.check(file, place, point)
    for number, receiver in enumerate(mappings(point, "receivers")):
        inner = f"{place}.receivers[{number}]"
        yield from RECEIVER.check(file, inner, receiver)
        settings = mapping(receiver, "settings")
        for needed in RECEIVERS.get(text(receiver, "type"), "").split():
            if not any(settings.get(name) for name in needed.split("|")):
                message = f"settings lack {needed.replace('|', ' or ')}"
                yield Violation(file, inner, message, _RECEIVERS)


def _check_unique(shipped: Shipped) -> Iterator[Violation]:
    receivers = [
        (file, f"{place}.receivers[{number}]", receiver)
        for file, place, point in shipped.listed("alerting", "contactPoints")
        for number, receiver in enumerate(mappings(point, "receivers"))
    ]
    for number, uid in again([text(receiver, "uid") for *_, receiver in receivers]):
        file, place, _ = receivers[number]
        source = f"{_ALERTING}/contact_point_provisioner.go: Provision"
        yield Violation(file, place, f"uid {uid!r} is there twice", source)
    for key, what, source in (
        ("policies", "orgId", f"{_ALERTING}/notification_policy_provisioner.go: Provision"),
        ("muteTimes", "name", f"{_ALERTING}/mute_times_provisioner.go: Provision"),
        ("templates", "name", f"{_ALERTING}/text_templates.go: Provision"),
    ):
        found = list(shipped.listed("alerting", key))
        default = "1" if what == "orgId" else ""
        for number, name in again([text(row[2], what) or default for row in found]):
            file, place, _ = found[number]
            message = f"{what} {name!r} is there twice; the last one replaces the first"
            yield Violation(file, place, message, source)


def _check_root(file: str, place: str, policy: dict[str, Any]) -> Iterator[Violation]:
    source = f"{_ROUTE}: Validate"
    if not policy.get("receiver"):
        yield Violation(file, place, "the root policy must name a receiver", source)
    for what, keys in _ONLY_BELOW.items():
        if any(policy.get(key) for key in keys):
            yield Violation(file, place, f"the root policy must not have {what}", source)


def _check_route(
    file: str, place: str, route: dict[str, Any], receivers: set[str], intervals: set[str]
) -> Iterator[Violation]:
    yield from _check_names(file, place, route, receivers, intervals)
    group_by = items(route, "group_by")
    if "..." in group_by and len(group_by) > 1:
        message = "group_by has '...' beside other labels"
        yield Violation(file, place, message, f"{_ROUTE}: ValidateChild")
    for _, label in again([str(name) for name in group_by]):
        message = f"group_by has {label!r} twice"
        yield Violation(file, place, message, f"{_ROUTE}: ValidateChild")
    for number, child in enumerate(mappings(route, "routes")):
        inner = f"{place}.routes[{number}]"
        yield from ROUTE.check(file, inner, child)
        yield from _check_route(file, inner, child, receivers, intervals)


def _check_names(
    file: str, place: str, route: dict[str, Any], receivers: set[str], intervals: set[str]
) -> Iterator[Violation]:
    receiver = text(route, "receiver")
    if receiver and receiver not in receivers:
        message = f"receiver {receiver!r} is no contact point's name"
        yield Violation(file, place, message, f"{_ROUTE}: ValidateReceivers")
    for key in ("mute_time_intervals", "active_time_intervals"):
        for name in items(route, key):
            if str(name) not in intervals:
                message = f"{key} has {name!r}, which is no mute timing's name"
                yield Violation(file, place, message, f"{_ROUTE}: ValidateTimeIntervals")


def _check_mute_time(file: str, place: str, mute: dict[str, Any]) -> Iterator[Violation]:
    yield from MUTE_TIME.check(file, place, mute)
    for number, interval in enumerate(mappings(mute, "time_intervals")):
        inner = f"{place}.time_intervals[{number}]"
        yield from TIME_INTERVAL.check(file, inner, interval)
        for times in mappings(interval, "times"):
            start, end = text(times, "start_time"), text(times, "end_time")
            if not _TIME.fullmatch(start) or not _TIME.fullmatch(end) or start >= end:
                message = f"times must be from HH:MM to a later HH:MM, got {start} to {end}"
                source = "Alertmanager, timeinterval/timeinterval.go: TimeRange.UnmarshalYAML"
                yield Violation(file, inner, message, source)


def _check_settings_of_rules(
    shipped: Shipped, receivers: set[str], intervals: set[str]
) -> Iterator[Violation]:
    for file, place, group in shipped.listed("alerting", "groups"):
        for number, rule in enumerate(mappings(group, "rules")):
            settings = mapping(rule, "notification_settings")
            inner = f"{place}.rules[{number}].notification_settings"
            yield from _check_names(file, inner, settings, receivers, intervals)


def _check_default(shipped: Shipped) -> Iterator[Violation]:
    """Without a policy of ours Grafana's own counts; it must not try to send e-mail."""
    tag = shipped.settings.get("GRAFANA_TAG", "")
    found = re.match(r"(\d+)\.(\d+)", tag)
    policies = list(shipped.listed("alerting", "policies"))
    if found and not policies and (int(found[1]), int(found[2])) < EMPTY_SINCE:
        yield Violation(
            ".env",
            "GRAFANA_TAG",
            f"Grafana {tag} sends alerts by e-mail if no policy says otherwise; "
            f"{EMPTY_SINCE[0]}.{EMPTY_SINCE[1]} and later send nothing",
            _DEFAULT,
        )
