"""The service that runs Grafana: its version, its settings and the folders it sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from monitoring.checks.files import GRAFANA, PROVISIONING, Shipped
from monitoring.checks.shapes import Violation, items, mapping

GRAFANA_MAJOR = 12
"""The version that the rules were read from."""

_DEFAULTS = "conf/defaults.ini"
_ENVIRONMENT = "Grafana: Configure Grafana, Override configuration with environment variables"
_DOCKERFILE = "Dockerfile"
_RUN = "packaging/docker/run.sh"
_HOME = "pkg/api/dashboard.go: GetHomeDashboard"

# Sections and keys of conf/defaults.ini that are in use or likely to be, with their kind.
SETTINGS = {
    "security": {"admin_user": "text", "admin_password": "text", "allow_embedding": "bool"},
    "auth.anonymous": {
        "enabled": "bool",
        "org_name": "text",
        "org_role": "role",
        "hide_version": "bool",
    },
    "auth": {"disable_login_form": "bool"},
    "users": {"default_theme": "text", "allow_sign_up": "bool"},
    "dashboards": {"default_home_dashboard_path": "text", "min_refresh_interval": "text"},
    "analytics": {
        "reporting_enabled": "bool",
        "check_for_updates": "bool",
        "check_for_plugin_updates": "bool",
        "feedback_links_enabled": "bool",
    },
    "news": {"news_feed_enabled": "bool"},
    "plugins": {
        "preinstall_disabled": "bool",
        "preinstall_auto_update": "bool",
        "plugin_admin_enabled": "bool",
    },
    "server": {"root_url": "text", "serve_from_sub_path": "bool", "domain": "text"},
    "smtp": {"enabled": "bool", "host": "text", "user": "text", "password": "text"},
    "log": {"level": "text", "mode": "text"},
    "unified_alerting": {"enabled": "bool", "min_interval": "text"},
}
NAMES = {
    "GF_" + re.sub(r"[.-]", "_", f"{section}_{key}").upper(): kind
    for section, keys in SETTINGS.items()
    for key, kind in keys.items()
}
# Without these Grafana sends requests to its maker, some of them at each start.
STAYS_AT_HOME = {
    "GF_ANALYTICS_REPORTING_ENABLED": "false",
    "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
    "GF_NEWS_NEWS_FEED_ENABLED": "false",
    "GF_PLUGINS_PREINSTALL_DISABLED": "true",
    "GF_PLUGINS_PREINSTALL_AUTO_UPDATE": "false",
}
_KINDS = {
    "bool": ("true or false", {"true", "false"}),
    "role": ("one of Viewer, Editor, Admin, None", {"Viewer", "Editor", "Admin", "None"}),
}
_PROVISIONING_PATH = "/etc/grafana/provisioning"  # GF_PATHS_PROVISIONING
_PORT = 3000

Fault = tuple[str, str, str]  # place, what is wrong, the rule


def check(shipped: Shipped) -> Iterator[Violation]:
    """Yield what is wrong with the service ``grafana``."""
    if not shipped.grafana:
        message = "there is no service grafana"
        yield Violation("compose.yaml", "services", message, "Compose: services")
        return
    for faults in (_version, _names, _values, _secrets, _mounts, _home, _health):
        for place, message, rule in faults(shipped):
            yield Violation("compose.yaml", f"grafana.{place}", message, rule)


def _version(shipped: Shipped) -> Iterator[Fault]:
    image = shipped.filled(str(shipped.grafana.get("image", "")))
    tag = image.rpartition(":")[2]
    if not re.match(rf"{GRAFANA_MAJOR}\.\d+\.\d+$", tag):
        yield (
            "image",
            f"must be a release of Grafana {GRAFANA_MAJOR}, from which these rules were read, got "
            f"{image or 'none'}",
            "monitoring/checks/compose.py: GRAFANA_MAJOR",
        )


def _names(shipped: Shipped) -> Iterator[Fault]:
    for name in shipped.environment:
        plain = name.removesuffix("__FILE")
        if not name.startswith("GF_"):
            yield "environment", f"{name} is no setting: those start with GF_", _ENVIRONMENT
        elif plain not in NAMES:
            message = f"{name} is no known setting GF_<SECTION>_<KEY>"
            yield "environment", message, f"{_DEFAULTS}; {_ENVIRONMENT}"


def _values(shipped: Shipped) -> Iterator[Fault]:
    for name, value in shipped.environment.items():
        words, allowed = _KINDS.get(NAMES.get(name, ""), ("", set()))
        if allowed and value not in allowed:
            yield "environment", f"{name} must be {words}, got {value!r}", _DEFAULTS
    for name, value in STAYS_AT_HOME.items():
        if shipped.environment.get(name) != value:
            message = f"{name} must be {value}: Grafana is to send its maker no request"
            yield "environment", message, _DEFAULTS


def _secrets(shipped: Shipped) -> Iterator[Fault]:
    targets = [target for _, target in _volumes(shipped)]
    for name, value in shipped.environment.items():
        plain = name.removesuffix("__FILE")
        if plain == name:
            continue
        if plain in shipped.environment:
            yield "environment", f"{plain} and {name} exclude each other", _RUN
        if not any(PurePosixPath(value).is_relative_to(target) for target in targets):
            yield "environment", f"{name}: {value} is in no mounted folder", _RUN


def _volumes(shipped: Shipped) -> list[tuple[str, str]]:
    """(source, target) of each mount."""
    rows = [shipped.filled(str(volume)).split(":") for volume in items(shipped.grafana, "volumes")]
    return [(row[0].removeprefix("./"), row[1]) for row in rows if len(row) > 1]


def _seen(shipped: Shipped, path: str) -> str | None:
    """Where in the repository the container's ``path`` is; None if nowhere."""
    fits = [
        (source, target)
        for source, target in _volumes(shipped)
        if PurePosixPath(path).is_relative_to(target)
    ]
    if not fits:
        return None
    source, target = max(fits, key=lambda fit: len(fit[1]))
    return (PurePosixPath(source) / PurePosixPath(path).relative_to(target)).as_posix()


def _mounts(shipped: Shipped) -> Iterator[Fault]:
    if _seen(shipped, _PROVISIONING_PATH) != PROVISIONING.as_posix():
        message = f"{PROVISIONING} must be mounted at {_PROVISIONING_PATH}"
        yield "volumes", message, f"{_DOCKERFILE}: GF_PATHS_PROVISIONING"
    boards = {str(PurePosixPath(name).parent) for name in shipped.dashboards}
    seen = set[str | None]()
    for file, place, provider in shipped.listed("providers", "providers"):
        path = str(mapping(provider, "options").get("path", ""))
        seen.add(_seen(shipped, path))
        if _seen(shipped, path) not in boards:
            name = f"{PurePosixPath(file).name}: {place}"
            message = f"{path}, the path of {name}, is no mounted folder of dashboards"
            yield (
                "volumes",
                message,
                "pkg/services/provisioning/dashboards/file_reader.go: walkDisk",
            )
    for folder in sorted(boards - seen) if seen <= boards else ():
        message = f"{folder} has dashboards that no provider reads"
        yield "volumes", message, "pkg/services/provisioning/dashboards/file_reader.go: walkDisk"


def _home(shipped: Shipped) -> Iterator[Fault]:
    path = shipped.environment.get("GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH")
    if path and _seen(shipped, path) not in shipped.dashboards:
        yield "environment", f"the home dashboard {path} is no dashboard in {GRAFANA}", _HOME


def _health(shipped: Shipped) -> Iterator[Fault]:
    test = [str(word) for word in items(mapping(shipped.grafana, "healthcheck"), "test")]
    if not test:
        yield "healthcheck", "test is missing", "Compose: healthcheck"
    elif test[:2] != ["CMD", "curl"]:
        message = f"must call curl, which each of Grafana's images has, got {' '.join(test)}"
        yield "healthcheck", message, f"{_DOCKERFILE}: Install dependencies"
    elif not test[-1].endswith(f":{_PORT}/api/health"):
        message = f"must request /api/health at port {_PORT}, got {test[-1]}"
        yield "healthcheck", message, "pkg/api/http_server.go: apiHealthHandler"
