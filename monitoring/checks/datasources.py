"""Datasources, and the folders of dashboards, as Grafana's provisioning reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from monitoring.checks.files import Shipped
from monitoring.checks.shapes import (
    BOOLEAN,
    DURATION,
    LIST,
    MAPPING,
    ORG,
    TEXT,
    TEXTS,
    UID,
    UID_RULE,
    Key,
    Kind,
    Shape,
    Violation,
    again,
    keys,
    mapping,
    one_of,
    text,
    text_up_to,
    whole_from,
)

_DATASOURCES = "pkg/services/provisioning/datasources"
_SERVICE = "pkg/services/datasources/service/datasource.go"
_DASHBOARDS = "pkg/services/provisioning/dashboards"
_VALUES = "pkg/services/provisioning/values/values.go: interpolateValue"


def _is_url(value: Any) -> bool:
    parts = urlsplit(str(value))
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and len(str(value)) <= 255


_URL = Kind("an http or https address of at most 255 bytes", _is_url)

FILE = Shape(
    f"{_DATASOURCES}/types.go: configsV1",
    {
        "apiVersion": Key(
            whole_from(1),
            required=True,
            rule=f"{_DATASOURCES}/config_reader.go: parseDatasourceConfig",
        ),
        "datasources": Key(LIST),
        "deleteDatasources": Key(LIST),
        "prune": Key(BOOLEAN),
    },
)
DATASOURCE = Shape(
    f"{_DATASOURCES}/types.go: upsertDataSourceFromConfigV1",
    {
        "orgId": Key(ORG),
        "version": Key(whole_from(0)),
        "name": Key(text_up_to(190), required=True, rule=f"{_SERVICE}: maxDatasourceNameLen"),
        "type": Key(TEXT, required=True),
        "access": Key(
            one_of("proxy", "direct"),
            rule=f"{_DATASOURCES}/config_reader.go: validateAccessAndOrgID",
        ),
        "url": Key(_URL, rule=f"{_SERVICE}: maxDatasourceUrlLen; pkg/api/datasource/validation.go"),
        **keys("user database basicAuthUser", TEXT),
        **keys("basicAuth withCredentials isDefault editable", BOOLEAN),
        "correlations": Key(LIST),
        "jsonData": Key(MAPPING),
        "secureJsonData": Key(TEXTS),
        # Not demanded by Grafana; but dashboards and alerts name it.
        "uid": Key(UID, required=True, rule=UID_RULE),
    },
)
PROMETHEUS = Shape(
    "Grafana: Configure the Prometheus data source, Provision; "
    "packages/grafana-prometheus/src/types.ts: PromOptions",
    {
        "httpMethod": Key(one_of("POST", "GET")),
        "timeInterval": Key(DURATION),
        "queryTimeout": Key(DURATION),
        "manageAlerts": Key(BOOLEAN),
        "allowAsRecordingRulesTarget": Key(BOOLEAN),
        "prometheusType": Key(one_of("Prometheus", "Mimir", "Cortex", "Thanos")),
        "prometheusVersion": Key(TEXT),
        "cacheLevel": Key(one_of("Low", "Medium", "High", "None")),
        "defaultEditor": Key(one_of("code", "builder")),
        "disableMetricsLookup": Key(BOOLEAN),
        "disableRecordingRules": Key(BOOLEAN),
        "incrementalQuerying": Key(BOOLEAN),
        "incrementalQueryOverlapWindow": Key(DURATION),
        "customQueryParameters": Key(TEXT),
        "exemplarTraceIdDestinations": Key(LIST),
        "alertmanagerUid": Key(TEXT),
        "seriesLimit": Key(whole_from(0)),
        **keys("tlsAuth tlsAuthWithCACert tlsSkipVerify", BOOLEAN),
    },
)
PROVIDERS = Shape(
    f"{_DASHBOARDS}/types.go: configV1",
    {
        "apiVersion": Key(
            whole_from(1), required=True, rule=f"{_DASHBOARDS}/config_reader.go: parseConfigs"
        ),
        "providers": Key(LIST, required=True),
    },
)
PROVIDER = Shape(
    f"{_DASHBOARDS}/types.go: configs",
    {
        "name": Key(TEXT, required=True),
        "type": Key(one_of("file"), rule=f"{_DASHBOARDS}/dashboard.go: getFileReaders"),
        "orgId": Key(ORG),
        "folder": Key(TEXT),
        "folderUid": Key(UID, rule=UID_RULE),
        "disableDeletion": Key(BOOLEAN),
        "allowUiUpdates": Key(BOOLEAN),
        "editable": Key(BOOLEAN),
        "updateIntervalSeconds": Key(
            whole_from(1), rule=f"{_DASHBOARDS}/file_reader.go: pollChanges"
        ),
        "options": Key(MAPPING, required=True),
    },
)
OPTIONS = Shape(
    f"{_DASHBOARDS}/file_reader.go: NewDashboardFileReader",
    {"path": Key(TEXT, required=True), "foldersFromFilesStructure": Key(BOOLEAN)},
)


def check(shipped: Shipped) -> Iterator[Violation]:
    """Yield what is wrong with the datasources and the dashboards' folders."""
    for file, tree in shipped.datasources.items():
        yield from FILE.check(file, "", tree)
    for file, tree in shipped.providers.items():
        yield from PROVIDERS.check(file, "", tree)
    yield from _check_datasources(list(shipped.listed("datasources", "datasources")))
    yield from _check_providers(list(shipped.listed("providers", "providers")))
    yield from _check_variables(shipped)


def _check_datasources(sources: list[tuple[str, str, dict[str, Any]]]) -> Iterator[Violation]:
    for file, place, source in sources:
        yield from DATASOURCE.check(file, place, source)
        if source.get("type") == "prometheus":
            inner = f"{place}.jsonData"
            yield from PROMETHEUS.check(file, inner, mapping(source, "jsonData"))
    for key, why in (
        ("name", f"{_DATASOURCES}/datasources.go: provisionDataSources"),
        ("uid", f"{_SERVICE}: ErrDataSourceUidExists"),
    ):
        names = [(text(row[2], "orgId") or "1", text(row[2], key)) for row in sources]
        for number, name in again(names):
            file, place, _ = sources[number]
            yield Violation(file, place, f"{key} {name[1]!r} is there twice", why)
    defaults = [
        (text(row[2], "orgId") or "1") if row[2].get("isDefault") is True else "" for row in sources
    ]
    for number, _ in again(defaults):
        file, place, _ = sources[number]
        message = "isDefault is true for two datasources of one organization"
        why = f"{_DATASOURCES}/config_reader.go: validateDefaultUniqueness"
        yield Violation(file, place, message, why)


def _check_providers(providers: list[tuple[str, str, dict[str, Any]]]) -> Iterator[Violation]:
    for file, place, provider in providers:
        yield from PROVIDER.check(file, place, provider)
        options = mapping(provider, "options")
        yield from OPTIONS.check(file, f"{place}.options", options)
        named = [key for key in ("folder", "folderUid") if provider.get(key)]
        if options.get("foldersFromFilesStructure") is True and named:
            message = f"{' and '.join(named)} must be empty with foldersFromFilesStructure"
            yield Violation(file, place, message, OPTIONS.rule)
        if str(provider.get("folder")).lower() == "general":
            message = "folder must not be General, the name of the root"
            yield Violation(
                file, place, message, f"{_DASHBOARDS}/file_reader.go: getOrCreateFolder"
            )
    for key, why in (
        ("name", f"{_DASHBOARDS}/types.go: mapToDashboardsAsConfig"),
        ("folderUid", f"{_DASHBOARDS}/config_reader.go: readConfig"),
    ):
        for number, name in again([text(row[2], key) for row in providers]):
            file, place, _ = providers[number]
            yield Violation(file, place, f"{key} {name!r} is there twice", why)


def _check_variables(shipped: Shipped) -> Iterator[Violation]:
    """In these files ``$NAME`` stands for a variable of Grafana's environment."""
    trees = {**shipped.datasources, **shipped.providers, **shipped.alerting}
    for file, tree in trees.items():
        for place, content in _texts(tree, ""):
            for name in re.findall(r"\$\{?(\w+)\}?", content.replace("$$", "")):
                if name not in shipped.environment:
                    message = f"${name} is replaced, but compose.yaml sets no such variable"
                    yield Violation(file, place, message, _VALUES)


# What Grafana takes as it stands: a query's model, annotations (but for ${...}), receivers' settings.
_RAW = {"model", "annotations", "settings", "template"}


def _texts(tree: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield place, tree
    elif isinstance(tree, list):
        for number, item in enumerate(tree):
            yield from _texts(item, f"{place}[{number}]")
    elif isinstance(tree, dict):
        for key, item in tree.items():
            if key not in _RAW:
                yield from _texts(item, f"{place}.{key}".lstrip("."))
