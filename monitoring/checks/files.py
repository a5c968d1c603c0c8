"""The files that Grafana starts with, read once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from monitoring.checks.shapes import Violation, mapping, mappings

GRAFANA = Path("monitoring/grafana")
PROVISIONING = GRAFANA / "provisioning"

_YAML_RULE = "pkg/services/provisioning/utils and each config_reader.go: yaml.Unmarshal"
_JSON_RULE = "pkg/services/provisioning/dashboards/file_reader.go: readDashboardFromFile"
_SUFFIX_RULES = {
    "alerting": "pkg/services/provisioning/alerting/config_reader.go: readConfig",
    "datasources": "pkg/services/provisioning/datasources/config_reader.go: readConfig",
    "dashboards": "pkg/services/provisioning/dashboards/config_reader.go: readConfig",
}
_FOLDER_RULE = "pkg/services/provisioning/provisioning.go: ProvisioningServiceImpl"
_OTHERS = {"plugins", "access-control", "notifiers"}  # Grafana reads them, we have none


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads YAML; the one in C, where there is one, is ten times as fast."""


@dataclass
class Shipped:
    """All files, by their path from the repository's folder."""

    alerting: dict[str, Any] = field(default_factory=dict)
    datasources: dict[str, Any] = field(default_factory=dict)
    providers: dict[str, Any] = field(default_factory=dict)
    dashboards: dict[str, Any] = field(default_factory=dict)
    compose: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    """The variables of .env."""
    present: set[str] = field(default_factory=set)
    """Paths of all files below monitoring/grafana."""

    def listed(self, kind: str, key: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(file, place, item) of a list that stands at the top of the files of a kind."""
        for file, tree in getattr(self, kind).items():
            for number, item in enumerate(mappings(tree, key)):
                yield file, f"{key}[{number}]", item

    @property
    def grafana(self) -> dict[str, Any]:
        """The service of compose.yaml."""
        return mapping(mapping(self.compose, "services"), "grafana")

    @property
    def environment(self) -> dict[str, str]:
        """Its environment, with the variables of .env filled in."""
        return {
            name: self.filled(str(value))
            for name, value in mapping(self.grafana, "environment").items()
        }

    def filled(self, text: str) -> str:
        """The text with ``${NAME}`` and ``${NAME:-default}`` replaced, as Compose does it."""
        return re.sub(
            r"\$\{(\w+)(?::-([^}]*))?\}",
            lambda found: self.settings.get(found[1]) or found[2] or "",
            text,
        )


def read(folder: Path) -> tuple[Shipped, list[Violation]]:
    """The files below ``folder``, the repository's, and what cannot be read."""
    shipped, wrong = Shipped(), list[Violation]()
    shipped.compose = _load(folder, Path("compose.yaml"), wrong)
    shipped.settings = _variables(folder, wrong)
    shipped.present = {
        path.relative_to(folder).as_posix()
        for path in sorted((folder / GRAFANA).rglob("*"))
        if path.is_file()
    }
    trees = {
        "alerting": shipped.alerting,
        "datasources": shipped.datasources,
        "dashboards": shipped.providers,
    }
    for name in sorted(shipped.present):
        path = Path(name)
        if path.is_relative_to(PROVISIONING):
            kind = path.relative_to(PROVISIONING).parts[0]
            if kind in trees:
                _read_provisioning(folder, path, kind, trees[kind], wrong)
            elif kind not in _OTHERS:
                message = f"is in no folder that Grafana reads; those are {', '.join(trees)}"
                wrong.append(Violation(name, "", message, _FOLDER_RULE))
        elif path.suffix == ".json":
            shipped.dashboards[name] = _load(folder, path, wrong)
    return shipped, wrong


def _read_provisioning(
    folder: Path, path: Path, kind: str, trees: dict[str, Any], wrong: list[Violation]
) -> None:
    suffixes = {".yaml", ".yml"} | ({".json"} if kind == "alerting" else set())
    if path.suffix in suffixes and path.parent == PROVISIONING / kind:
        trees[path.as_posix()] = _load(folder, path, wrong)
    else:
        message = f"is not read: only {', '.join(sorted(suffixes))} in {kind}/ itself are"
        wrong.append(Violation(path.as_posix(), "", message, _SUFFIX_RULES[kind]))


def _load(folder: Path, path: Path, wrong: list[Violation]) -> dict[str, Any]:
    """A file's mapping; an empty one, and what is wrong, where there is none."""
    rule = _JSON_RULE if path.suffix == ".json" else _YAML_RULE
    try:
        text = (folder / path).read_text(encoding="utf-8")
        tree = (
            json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)  # noqa: S506
        )
    except OSError as error:
        wrong.append(Violation(path.as_posix(), "", f"cannot be read: {error.strerror}", rule))
    except (ValueError, yaml.YAMLError) as error:
        message = f"cannot be parsed: {' '.join(str(error).split())}"
        wrong.append(Violation(path.as_posix(), "", message, rule))
    else:
        if isinstance(tree, dict):
            return tree
        wrong.append(Violation(path.as_posix(), "", "must be a mapping", rule))
    return {}


def _variables(folder: Path, wrong: list[Violation]) -> dict[str, str]:
    try:
        lines = (folder / ".env").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        wrong.append(Violation(".env", "", message, "Compose: environment files"))
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("'\"") for name, value in pairs}
