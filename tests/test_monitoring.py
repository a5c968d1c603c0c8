"""The network's Prometheus and Grafana files: current, valid, and about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from flsimulation.telemetry.table import ALL_METRICS, make_metric

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # monitoring is a folder of the repository, not of the package

from monitoring import generate, layout  # noqa: E402
from monitoring.promql import promql  # noqa: E402
from monitoring.queries import queries  # noqa: E402

MONITORING = ROOT / "monitoring"
PROMETHEUS = MONITORING / "prometheus"
PROVISIONING = MONITORING / "grafana" / "provisioning"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (part of Prometheus) is not on the PATH"
)


def load(path: Path) -> Any:
    """A YAML or JSON file as it is checked in."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Rules of alerts.yml by name; ``kind`` is ``alert`` or ``record``."""
    groups = load(PROMETHEUS / "alerts.yml")["groups"]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def grafana_rules() -> dict[str, dict[str, Any]]:
    (group,) = load(PROVISIONING / "alerting" / "rules.yml")["groups"]
    return {rule["title"]: rule for rule in group["rules"]}


ALERTS, RECORDED = rules("alert"), rules("record")


def each_panel() -> list[Any]:
    """Every panel of the dashboards as a pytest parameter."""
    return [
        pytest.param(panel, id=f"{path.stem}-{panel['id']}-{panel['title']}")
        for path in DASHBOARDS
        for panel in load(path)["panels"]
    ]


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of every rule and panel, read from the files."""
    for name, rule in {**ALERTS, **RECORDED}.items():
        yield name, rule["expr"]
    for name, rule in grafana_rules().items():
        yield f"Grafana's {name}", rule["data"][0]["model"]["expr"]
    for path in DASHBOARDS:
        for panel in load(path)["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]
        for mark in load(path)["annotations"]["list"]:
            yield f"{path.stem}: {mark['name']}", mark["expr"]


def series_asked_for(expression: str) -> set[str]:
    """Names of the series in an expression: what is neither a function, a label nor a keyword."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\boffset\s+\w+", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    names = re.findall(r"(?<![\w:])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", bare)
    return set(names) - {"and", "or", "unless", "bool", "Inf"}


def labels_asked_for(expression: str) -> set[str]:
    lists = re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", expression)
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    return {label.strip() for names in lists for label in names.split(",")} - {""} | set(matched)


def exported() -> set[str]:
    """Names of the series that prometheus_client serves for the table."""
    registry = CollectorRegistry()
    for metric in ALL_METRICS:
        made = make_metric(metric, registry)
        if metric.labels and metric.kind != "info":
            made.labels(*("x" for _ in metric.labels))
    return {sample.name for family in registry.collect() for sample in family.samples}


def promtool(*arguments: str, folder: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def altered(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """A copy of the rules and their tests in which every rule was given to a function."""

    def copy(change: Callable[[dict[str, Any]], None]) -> Path:
        shutil.copy(PROMETHEUS / "alerts_test.yml", tmp_path)
        tree = load(PROMETHEUS / "alerts.yml")
        for group in tree["groups"]:
            for rule in group["rules"]:
                change(rule)
        (tmp_path / "alerts.yml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return tmp_path

    return copy


class TestGenerator:
    def test_the_files_are_current(self):
        assert generate.main(["--check"]) == 0

    def test_check_names_what_is_not_current_and_writes_nothing(self, tmp_path, capsys):
        assert generate.main([], folder=tmp_path) == 0
        assert generate.main(["--check"], folder=tmp_path) == 0
        changed = tmp_path / "prometheus" / "alerts.yml"
        changed.write_text("old")
        (tmp_path / "grafana" / "dashboards" / "client.json").unlink()
        assert generate.main(["--check"], folder=tmp_path) == 1
        said = capsys.readouterr().err
        assert "prometheus/alerts.yml" in said
        assert "grafana/dashboards/client.json" in said
        assert "federation.json" not in said
        assert changed.read_text() == "old"

    def test_it_runs_as_a_script_from_anywhere(self, tmp_path):
        script = [sys.executable, str(MONITORING / "generate.py"), "--check"]
        assert subprocess.run(script, cwd=tmp_path, check=False).returncode == 0

    @pytest.mark.parametrize("text", ["fl_rounds", "sum(fl_nonsense_total)", "fl_clients_total{}"])
    def test_a_metric_that_is_not_in_the_table_is_refused(self, text):
        with pytest.raises(LookupError, match="exports no series 'fl_"):
            promql(text)

    def test_a_histogram_has_only_its_own_series(self):
        with pytest.raises(LookupError, match="'fl_round_duration_seconds'"):
            promql("fl_round_duration_seconds")
        with pytest.raises(LookupError, match="'fl_clients_connected_sum'"):
            promql("fl_clients_connected_sum")
        assert promql("  fl_round_duration_seconds_sum") == "fl_round_duration_seconds_sum"

    def test_a_label_that_the_metric_does_not_have_is_refused(self):
        with pytest.raises(LookupError, match="fl_run_state has no label stage"):
            promql('fl_run_state{stage="running"}')
        assert promql('fl_run_state{state="running",job=~"s.*"}')


class TestExpressions:
    def test_they_use_only_the_metrics_of_the_table(self):
        known = exported() | set(RECORDED) | {"up", "ALERTS"}
        strange = {
            (where, name)
            for where, expression in expressions()
            for name in series_asked_for(expression) - known
        }
        assert strange == set()

    def test_they_use_only_labels_that_exist(self):
        known = {label for metric in ALL_METRICS for label in metric.labels}
        known |= {"job", "instance", "container"}  # by Prometheus, by the recording rules
        known |= {"alertname", "alertstate", "severity", "cause"}  # by the alerts
        strange = {
            (where, label)
            for where, expression in expressions()
            for label in labels_asked_for(expression) - known
        }
        assert strange == set()

    def test_every_metric_of_the_table_is_shown_somewhere(self):
        asked = {name for _, expression in expressions() for name in series_asked_for(expression)}
        stems = {re.sub(r"_(sum|count|bucket)$", "", name) for name in asked} | asked
        assert {metric.name for metric in ALL_METRICS} - stems == set()

    def test_every_recording_rule_is_used(self):
        used = {name for _, text in expressions() for name in series_asked_for(text)}
        assert set(RECORDED) - used == set()

    def test_windows_hold_at_least_four_scrapes(self):
        scrape = load(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
        assert scrape == "5s"
        windows = {
            found
            for _, expression in expressions()
            for found in re.findall(r"\[(.*?)\]", expression)
        }
        assert windows <= {"$__range", "30s", "5m", "5m:5s"}

    @needs_promtool
    def test_prometheus_parses_those_of_the_panels(self, tmp_path):
        asked = [query for query in queries() if query.source.startswith("panel")]
        group = [
            {"record": f"panel:{number}", "expr": query.expression}
            for number, query in enumerate(asked)
        ]
        (tmp_path / "panels.yml").write_text(
            yaml.safe_dump({"groups": [{"name": "panels", "rules": group}]})
        )
        done = promtool("check", "rules", "panels.yml", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{len(asked)} rules found" in done.stdout

    def test_queries_lists_them_all_with_variables_filled_in(self):
        asked = list(queries(partition="7", seconds=900))
        sources = [query.source for query in asked]
        targets = sum(len(p.values[0]["targets"]) for p in each_panel())
        assert len(asked) == targets + len(ALERTS) + len(RECORDED)
        panels = [query for query in asked if query.source.startswith("panel")]
        assert not any("$" in query.expression for query in panels)
        assert any('partition="7"' in query.expression for query in panels)
        assert any("[900s]" in query.expression for query in panels)
        assert {query.source for query in panels if not query.answers} == {
            f"panel federation: {title}" for title in ("Clients over time", "Firing alerts")
        } | {f"panel {name}: {title}" for name, title in OF_MANY_CLIENTS}
        assert {f"alert {name}" for name in ALERTS} <= set(sources)


class TestDashboards:
    def test_there_are_three_with_fixed_uids(self):
        assert {path.stem: load(path)["uid"] for path in DASHBOARDS} == {
            "federation": "flsim-federation",
            "client": "flsim-client",
            "resources": "flsim-resources",
        }

    @pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
    def test_they_are_live_linked_and_read_only(self, path):
        board = load(path)
        assert board["refresh"] == "5s"
        assert board["time"] == {"from": "now-15m", "to": "now"}
        assert board["editable"] is False
        (link,) = board["links"]
        assert (link["type"], link["tags"]) == ("dashboards", board["tags"])
        assert link["keepTime"] is True

    @pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
    def test_panels_fill_the_grid_without_gap_or_overlap(self, path):
        cells = [
            (x, y)
            for panel in load(path)["panels"]
            for place in [panel["gridPos"]]
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        height = max(y for _, y in cells) + 1
        assert sorted(cells) == [(x, y) for x in range(24) for y in range(height)]
        ids = [panel["id"] for panel in load(path)["panels"]]
        assert len(set(ids)) == len(ids)

    def test_a_row_that_does_not_fill_the_width_is_refused(self):
        panel = next(iter(generate.DASHBOARDS["client"]().panels))
        with pytest.raises(ValueError, match="24 columns wide, got 23"):
            layout.build("u", "t", "d", [layout.row(4, panel, widths=(23,))])

    @pytest.mark.parametrize("panel", each_panel())
    def test_a_panel_says_what_it_shows_in_which_unit_and_when_empty(self, panel):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"].strip()
        assert re.search(r"\w{3,}.*[.:]", panel["description"])
        assert defaults["unit"].strip()
        assert re.match(r"(no|not|nobody|nothing|none)\b", defaults["noValue"])

    @pytest.mark.parametrize("panel", each_panel())
    def test_a_panel_asks_our_prometheus_and_names_series_by_partition(self, panel):
        (source,) = load(PROVISIONING / "datasources" / "prometheus.yml")["datasources"]
        assert panel["targets"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": source["uid"]}
        for target in panel["targets"]:
            assert not re.search("instance|node_id|pod", target["legendFormat"])
            shown = re.findall(r"{{(\w+)}}", target["legendFormat"])
            grouped = labels_asked_for(target["expr"])
            recorded = {"partition", "container"} if ":" in target["expr"] else set()
            assert set(shown) <= grouped | recorded

    @pytest.mark.parametrize("panel", each_panel())
    def test_several_series_never_share_a_legend(self, panel):
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends)

    @pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
    def test_grafanas_own_schema_reads_them_without_loss(self, path):
        from grafana_foundation_sdk.cog import plugins
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.models.dashboard import Dashboard

        plugins.register_default_plugins()
        board = json.loads(path.read_text(encoding="utf-8"))
        again = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
        # The SDK gives every link it reads the one placement that it knows.
        assert without(again, "placement", "inControlsMenu") == board

    def test_the_client_is_chosen_by_its_partition(self):
        (variable,) = load(MONITORING / "grafana" / "dashboards" / "client.json")["templating"][
            "list"
        ]
        assert variable["name"] == "partition"
        assert variable["query"] == "label_values(fl_client_fits_total, partition)"
        assert "fl_client_fits_total" in exported()

    def test_a_click_on_a_client_leads_to_its_dashboard(self):
        board = load(MONITORING / "grafana" / "dashboards" / "federation.json")
        urls = {
            link["url"]
            for panel in board["panels"]
            for link in panel["fieldConfig"]["defaults"].get("links", [])
        }
        assert urls == {
            "/d/flsim-client?var-partition=${__field.labels.partition}&${__url_time_range}"
        }


def without(tree: Any, key: str, value: str) -> Any:
    """The tree without the entries ``key: value``."""
    if isinstance(tree, dict):
        return {k: without(v, key, value) for k, v in tree.items() if (k, v) != (key, value)}
    return [without(item, key, value) for item in tree] if isinstance(tree, list) else tree


class TestAlerts:
    def test_these_are_all(self):
        assert set(ALERTS) == {
            "ClientDown",
            "RoundStalled",
            "Straggler",
            "ModelDiverged",
            "ClientMemoryNearLimit",
            "FailuresHigh",
            "NoRun",
            "TargetDown",
        }

    @pytest.mark.parametrize("name", ALERTS)
    def test_it_says_how_bad_it_is_what_is_wrong_and_what_to_do(self, name):
        alert = ALERTS[name]
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert alert["annotations"]["summary"]
        assert len(alert["annotations"]["description"].split()) > 20
        assert not re.search(r"\bVALUE\b", str(alert["annotations"]))

    @pytest.mark.parametrize("name", ALERTS)
    def test_one_case_lets_it_fire_and_one_does_not(self, name):
        cases = [
            bool(case["exp_alerts"])
            for test in load(PROMETHEUS / "alerts_test.yml")["tests"]
            for case in test.get("alert_rule_test", [])
            if case["alertname"] == name
        ]
        assert set(cases) == {True, False}

    @needs_promtool
    def test_promtool_accepts_the_configuration_and_the_rules(self):
        done = promtool("check", "config", "prometheus.yml")
        assert done.returncode == 0, done.stderr
        assert f"{len(ALERTS) + len(RECORDED)} rules found" in done.stdout

    @needs_promtool
    def test_they_fire_when_they_should_and_only_then(self):
        done = promtool("test", "rules", "alerts_test.yml")
        assert done.returncode == 0, done.stdout + done.stderr

    @needs_promtool
    @pytest.mark.parametrize("broken", ["vector(1)", "vector(1) > 2"], ids=["always", "never"])
    def test_their_tests_notice_each_that_fires_always_or_never(self, altered, broken):
        def change(rule: dict[str, Any]) -> None:
            if "alert" in rule:
                rule["expr"] = broken

        done = promtool("test", "rules", "alerts_test.yml", folder=altered(change))
        assert done.returncode == 1
        assert set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr)) == set(ALERTS)

    @needs_promtool
    def test_each_gives_a_number_above_0_as_grafanas_condition_wants(self, altered):
        def change(rule: dict[str, Any]) -> None:
            if "alert" in rule:
                rule["expr"] = f"({rule['expr']}) > 0"

        done = promtool("test", "rules", "alerts_test.yml", folder=altered(change))
        assert done.returncode == 0, done.stdout + done.stderr


class TestGrafana:
    def test_it_has_the_same_alerts(self):
        assert list(grafana_rules()) == list(ALERTS)
        for name, rule in grafana_rules().items():
            asked, condition = rule["data"]
            assert asked["model"]["expr"].split() == ALERTS[name]["expr"].split()
            assert asked["model"]["instant"] is True
            assert rule["for"] == ALERTS[name]["for"]
            assert rule["labels"] == ALERTS[name]["labels"]
            assert rule["condition"] == condition["refId"] == "B"
            assert condition["model"]["expression"] == asked["refId"] == "A"
            (threshold,) = condition["model"]["conditions"]
            assert threshold["evaluator"] == {"type": "gt", "params": [0]}
            assert rule["noDataState"] == "OK"

    def test_their_texts_are_the_same_with_grafanas_name_for_the_value(self):
        for name, rule in grafana_rules().items():
            for part, text in ALERTS[name]["annotations"].items():
                assert rule["annotations"][part].replace("$values.A.Value", "$value") == text
                assert not re.search(r"\$value\b", rule["annotations"][part])

    def test_uids_are_fixed_and_differ(self):
        uids = [rule["uid"] for rule in grafana_rules().values()]
        assert uids[0] == "flsim-client-down"
        assert len(set(uids)) == len(uids)
        assert all(re.fullmatch(r"[a-z-]{1,40}", uid) for uid in uids)

    def test_alerts_have_a_folder_of_their_own_and_nobody_is_written_to(self):
        (provider,) = load(PROVISIONING / "dashboards" / "flsimulation.yml")["providers"]
        alerting = load(PROVISIONING / "alerting" / "rules.yml")
        assert provider["folder"] == "FLSimulation"
        assert alerting["groups"][0]["folder"] == "FLSimulation alerts"
        assert provider["allowUiUpdates"] is False
        assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
        assert set(alerting) == {"apiVersion", "groups"}

    def test_the_datasource_is_ours_and_read_only(self):
        (source,) = load(PROVISIONING / "datasources" / "prometheus.yml")["datasources"]
        scraped = load(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
        assert source["uid"] == "flsim-prometheus"
        assert source["url"] == "http://prometheus:9090"
        assert source["editable"] is False
        assert source["jsonData"]["timeInterval"] == scraped
        uids = {
            query["datasourceUid"] for rule in grafana_rules().values() for query in rule["data"]
        }
        assert uids == {source["uid"], "__expr__"}


class TestPrometheus:
    def test_it_asks_the_server_every_client_and_itself(self):
        config = load(PROMETHEUS / "prometheus.yml")
        jobs = {job.pop("job_name"): job for job in config["scrape_configs"]}
        assert jobs == {
            "superlink": {"static_configs": [{"targets": ["superlink:8000"]}]},
            "client": {
                "dns_sd_configs": [
                    {"names": ["client"], "type": "A", "port": 8000, "refresh_interval": "5s"}
                ]
            },
            "prometheus": {"static_configs": [{"targets": ["localhost:9090"]}]},
        }
        assert config["rule_files"] == ["alerts.yml"]
        assert config["global"]["evaluation_interval"] == "5s"
