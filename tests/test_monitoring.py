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

from flsimulation.metrics.table import ALL_METRICS, make_metric

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # monitoring is a folder of the repository, not of the package

from monitoring import generate, layout  # noqa: E402
from monitoring.promql import promql  # noqa: E402
from monitoring.queries import filled, queries  # noqa: E402

pytestmark = pytest.mark.seconds

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
            for found in re.findall(r"\[(.*?)\]", re.sub(r'"[^"]*"', "", expression))
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
        assert not any(re.search(r"\$[{a-z_]", query.expression) for query in panels)
        assert any('partition="7"' in query.expression for query in panels)
        assert any("[900s]" in query.expression for query in panels)
        silent = {query.source for query in asked if not query.answers}
        assert "panel federation: Firing alerts" in silent
        assert "panel federation: Where a round's time goes" in silent  # of a run in progress
        assert "recording partition:down" in silent
        assert silent.isdisjoint({"panel federation: State", "recording partition:state"})
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
        if panel["type"] == "table":
            return  # has none
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
        lines, cells = set(), set()
        for panel in board["panels"]:
            lines |= {link["url"] for link in panel["fieldConfig"]["defaults"].get("links", [])}
            cells |= {link["url"] for link in overridden(panel, "links") for link in link}
        address = "/d/flsim-client?var-partition=${%s}&${__url_time_range}"
        assert lines == {address % "__field.labels.partition"}
        assert cells == {address % "__value.raw"}


def overridden(panel: dict[str, Any], key: str) -> list[Any]:
    """Values that a panel's fields of their own have for a property."""
    return [
        value["value"]
        for override in panel["fieldConfig"]["overrides"]
        for value in override["properties"]
        if value["id"] == key
    ]


def without(tree: Any, key: str, value: str) -> Any:
    """The tree without the entries ``key: value``."""
    if isinstance(tree, dict):
        return {k: without(v, key, value) for k, v in tree.items() if (k, v) != (key, value)}
    return [without(item, key, value) for item in tree] if isinstance(tree, list) else tree


GRAPHS = [p for p in each_panel() if p.values[0]["type"] == "timeseries"]
STATS = [p for p in each_panel() if p.values[0]["type"] == "stat"]
NEVER_ZERO = {
    *("Loss by round", "Training time of the clients", "Training time by round"),
    *("Where a round's time goes", "Bytes a round", "CPU", "Memory", "Privacy", "Clipping norm"),
}
"""Graphs that show nothing before they have values above 0."""


class TestReadability:
    """What was hard to read once: units, legends, colours, axes, and many clients."""

    @pytest.mark.parametrize("panel", each_panel())
    def test_a_unit_of_its_own_stands_one_space_from_the_number(self, panel):
        for unit in (panel["fieldConfig"]["defaults"]["unit"], *overridden(panel, "unit")):
            assert not unit.startswith("suffix: ")  # Grafana puts one there itself

    @pytest.mark.parametrize("panel", GRAPHS)
    def test_a_legend_has_the_last_and_the_highest_value(self, panel):
        legend = panel["options"]["legend"]
        assert (legend["displayMode"], legend["calcs"]) == ("table", ["lastNotNull", "max"])

    @pytest.mark.parametrize("panel", GRAPHS)
    def test_only_parts_of_a_whole_are_stacked_and_no_counter(self, panel):
        mode = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"]
        assert (mode == "normal") == (
            panel["title"] in {"Clients by state", "Where a round's time goes"}
        )
        for target in panel["targets"]:
            assert "_total" not in target["expr"]

    @pytest.mark.parametrize("panel", GRAPHS)
    def test_an_axis_of_zeros_does_not_reach_to_a_hundred(self, panel):
        defaults = panel["fieldConfig"]["defaults"]
        bounded = "max" in defaults or "axisSoftMax" in defaults["custom"]
        assert bounded != (panel["title"] in NEVER_ZERO)

    @pytest.mark.parametrize("panel", GRAPHS)
    def test_lines_have_colours_of_their_own(self, panel):
        # By name Grafana takes the colour from a hash of it, and two of ten clients collide.
        assert panel["fieldConfig"]["defaults"]["color"]["mode"] == "palette-classic"
        colours = [colour["fixedColor"] for colour in overridden(panel, "color")]
        assert len(set(colours)) == len(colours)

    def test_what_failed_is_not_green(self):
        panel = panel_of("federation", "Failures")
        names = [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]]
        assert names == ["error", "diverged", "deadline", "lost", "rejected"]
        assert "green" not in {colour["fixedColor"] for colour in overridden(panel, "color")}

    @pytest.mark.parametrize("panel", STATS)
    def test_no_number_stands_on_a_graph_and_what_is_empty_is_grey(self, panel):
        assert panel["options"]["graphMode"] == "none"
        defaults = panel["fieldConfig"]["defaults"]
        if "mappings" in defaults:
            empty = defaults["mappings"][-1]["options"]
            assert empty["match"] == "null"
            assert empty["result"]["text"] == defaults["noValue"]
            assert empty["result"]["color"] == "text"

    @pytest.mark.parametrize("panel", [p for p in each_panel() if p.values[0]["type"] == "table"])
    def test_a_tables_columns_fit_its_width_and_empty_cells_say_nothing(self, panel):
        widths = overridden(panel, "custom.width")
        assert sum(widths) <= panel["gridPos"]["w"] / 24 * 1500  # pixels of a usual screen
        columns = panel["fieldConfig"]["overrides"]
        assert len(widths) < len(columns)  # one takes what is left: no empty strip at the right
        assert set(overridden(panel, "noValue")) == {"-"}

    def test_each_severity_of_an_alert_has_its_colour(self):
        ((mapping,),) = overridden(panel_of("federation", "Firing alerts"), "mappings")
        colours = {name: shown["color"] for name, shown in mapping["options"].items()}
        assert colours == {"critical": "red", "warning": "orange", "info": "blue"}
        assert {rule["labels"]["severity"] for rule in ALERTS.values()} == set(colours)

    def test_a_run_without_epsilon_is_not_said_to_hide_nobody(self):
        # Secure aggregation hides the clients' updates, and spends no epsilon.
        for title in ("Privacy", "Clipping norm"):
            empty = panel_of("federation", title)["fieldConfig"]["defaults"]["noValue"]
            assert empty == "no differential privacy in this run"

    @pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
    def test_a_mark_shows_where_a_run_begins(self, path):
        (mark,) = load(path)["annotations"]["list"]
        assert mark["enable"] is True
        assert mark["useValueForTime"] is True  # Unix time in milliseconds
        assert mark["expr"].startswith("1000 * fl_run_started_timestamp_seconds")

    def test_every_type_of_panel_can_be_drawn(self):
        from monitoring.draw import kinds

        assert kinds() == {panel.values[0]["type"] for panel in each_panel()}

    def test_some_panels_can_be_drawn_side_by_side(self):
        from monitoring.draw import side_by_side

        panels = load(MONITORING / "grafana" / "dashboards" / "federation.json")["panels"]
        drawn = side_by_side(panels, ["Privacy", "Loss by round"])
        assert [panel["title"] for panel in drawn] == ["Privacy", "Loss by round"]
        assert [panel["gridPos"] for panel in drawn] == [
            {"x": 0, "y": 0, "w": 12, "h": 9},
            {"x": 12, "y": 0, "w": 12, "h": 9},
        ]
        with pytest.raises(RuntimeError, match=r"^--panel privacy: use one of State, Round, "):
            side_by_side(panels, ["privacy"])


def panel_of(board: str, title: str) -> dict[str, Any]:
    panels = load(MONITORING / "grafana" / "dashboards" / f"{board}.json")["panels"]
    (found,) = (panel for panel in panels if panel["title"] == title)
    return found


def expression_of(board: str, title: str, legend: str = "", partition: str = "0") -> str:
    """The expression of a panel's query, the only one or that with a legend, as Prometheus gets it."""
    targets = panel_of(board, title)["targets"]
    (found,) = (t["expr"] for t in targets if legend in ("", t["legendFormat"]))
    return filled(found, {"partition": partition, "__range": "900s"})


Expected = dict[str, float]
Holds = Callable[[dict[str, str], dict[tuple[str, str], Expected]], None]


@pytest.fixture
def holds(tmp_path: Path) -> Holds:
    """Asserts that expressions have values: (expression, time) -> labels -> value."""

    def check(series: dict[str, str], expected: dict[tuple[str, str], Expected]) -> None:
        shutil.copy(PROMETHEUS / "alerts.yml", tmp_path)
        cases = [
            {
                "expr": expression,
                "eval_time": at,
                "exp_samples": [{"labels": k, "value": v} for k, v in samples.items()],
            }
            for (expression, at), samples in expected.items()
        ]
        inputs = [{"series": name, "values": values} for name, values in series.items()]
        test = {"interval": "5s", "input_series": inputs, "promql_expr_test": cases}
        text = {
            "rule_files": ["alerts.yml"],
            "evaluation_interval": "5s",
            "group_eval_order": ["run", "clients", "containers", "alerts"],
            "tests": [test],
        }
        (tmp_path / "test.yml").write_text(yaml.safe_dump(text))
        done = promtool("test", "rules", "test.yml", folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr

    return check


def clients(number: int, values: str, name: str = "fl_client_fit_mean_seconds") -> dict[str, str]:
    return {f'{name}{{partition="{n}"}}': values for n in range(number)}


@needs_promtool
class TestTruth:
    """What was false once: two runs as one, values of what is over, and who is who."""

    RUN = {  # one run that ends at 100 s, another from 150 s on
        'fl_run_state{state="running"}': "1x20 0x9 1x50",
        "fl_run_started_timestamp_seconds": "0x29 150x50",
        "fl_run_rounds": "10x80",
    }

    def test_a_rounds_time_and_bytes_are_shown_during_a_run_only(self, holds):
        time = expression_of("federation", "Where a round's time goes")
        size = expression_of("federation", "Bytes a round")
        holds(
            {
                **self.RUN,
                'fl_last_round_seconds{phase="train"}': "12x29 stale _ _ 15x40",
                'fl_last_round_bytes{direction="up"}': "70x29 stale _ _ 71x40",
            },
            {
                (time, "95s"): {'{phase="train"}': 12},
                (time, "120s"): {},
                (time, "155s"): {},
                (time, "200s"): {'{phase="train"}': 15},
                (size, "95s"): {'{direction="up"}': 70},
                (size, "120s"): {},
                (size, "200s"): {'{direction="up"}': 71},
            },
        )

    def test_seconds_a_round_are_those_of_one_run(self, holds):
        mean = expression_of("federation", "Seconds a round", "mean")
        so_far = expression_of("federation", "Seconds a round", "so far")
        holds(
            {
                **self.RUN,
                "fl_run_round_mean_seconds": "19x29 0x5 11x45",
                "fl_round_started_timestamp_seconds": "90x20 0x9 160x50",
            },
            {
                (mean, "120s"): {"{}": 19},  # the last run's
                (mean, "155s"): {},
                (mean, "300s"): {"{}": 11},
                (so_far, "95s"): {"{}": 5},
                (so_far, "120s"): {},
                (so_far, "170s"): {"{}": 10},
            },
        )

    def test_the_time_left_is_known_from_the_first_round_to_the_runs_end(self, holds):
        left = expression_of("federation", "Time left")
        holds(
            {
                **self.RUN,
                "fl_run_current_round": "10x29 2x50",
                "fl_run_round_mean_seconds": "19x29 0x5 10x45",
                "fl_round_started_timestamp_seconds": "90x20 0x9 160x50",
            },
            {
                (left, "95s"): {"run:left_seconds": 14},
                (left, "120s"): {"{}": -1},
                (left, "160s"): {},
                (left, "180s"): {"run:left_seconds": 80},  # 8 rounds; this one is late
            },
        )

    def test_failures_are_this_runs_and_each_reason_has_its_own_number(self, holds):
        holds(
            {
                **self.RUN,
                'fl_run_failures{reason="deadline"}': "9x29 0x50",
                'fl_run_failures{reason="error"}': "6x29 0x50",
                'fl_run_failures{reason="lost"}': "3x29 1x50",
            },
            {
                (expression_of("federation", "Failures"), "120s"): {
                    '{reason="deadline"}': 9,
                    '{reason="error"}': 6,
                    '{reason="lost"}': 3,
                },
                (expression_of("federation", "Failures"), "200s"): {
                    '{reason="deadline"}': 0,
                    '{reason="error"}': 0,
                    '{reason="lost"}': 1,
                },
            },
        )

    DOWN = {
        'fl_run_state{state="running"}': "1x20 0x20",
        "fl_run_started_timestamp_seconds": "0x40",
        "fl_run_current_round": "3x40",
        "fl_clients_expected": "3x40",
        "fl_clients_connected": "2x40",
        'fl_client_connected{partition="0"}': "1x40",
        'fl_client_connected{partition="1"}': "1x40",
        'fl_client_connected{partition="2"}': "0x40",
        'fl_client_awaited{partition="0"}': "1x40",
        'fl_client_awaited{partition="1"}': "0x40",
        'fl_client_awaited{partition="2"}': "1x40",
        'fl_client_accuracy{partition="0"}': "0.9x40",
    }

    def test_who_is_down_is_a_client_not_a_number(self, holds):
        who = expression_of("federation", "Who is down")
        holds(
            self.DOWN,
            {
                (who, "50s"): {'partition:down{container="client 2", partition="2"}': 1},
                (who, "150s"): {'{container="no run in progress"}': 1},
            },
        )

    def test_the_clients_are_told_apart_that_are_down_connected_and_at_work(self, holds):
        states = {
            f'partition:state{{partition="{n}"}}': v for n, v in (("0", 1), ("1", 2), ("2", 0))
        }
        count = {
            legend: expression_of("federation", "Clients by state", legend)
            for legend in ("clients down", "connected", "at work")
        }
        over_time = expression_of("federation", "Clients over time")
        missing = expression_of("federation", "Clients", "missing")
        there = expression_of("federation", "Clients", "connected")
        holds(
            self.DOWN,
            {
                ("partition:state", "50s"): states,
                (over_time, "50s"): states,
                **{(text, "50s"): {"{}": 1} for text in count.values()},
                (missing, "50s"): {"{}": 1},
                (there, "50s"): {"{}": 2},
            },
        )

    def test_a_client_that_is_down_is_not_said_to_be_unevaluated(self, holds):
        for panel in load(MONITORING / "grafana" / "dashboards" / "client.json")["panels"]:
            if panel["type"] == "stat" and panel["title"] != "State":
                assert all("-1 * max(partition:down{" in t["expr"] for t in panel["targets"])
                mapped = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
                assert mapped["-1"]["text"] == "down"
        down = expression_of("client", "Accuracy", partition="2")
        other = expression_of("client", "Accuracy", partition="1")
        there = expression_of("client", "Accuracy", partition="0")
        holds(
            self.DOWN,
            {(down, "50s"): {"{}": -1}, (other, "50s"): {}, (there, "50s"): {"{}": 0.9}},
        )

    def test_without_a_client_its_dashboard_shows_none_and_not_the_server(self, holds):
        known = {"all clients", "median"}
        texts = {
            expression_of("client", panel["title"], target["legendFormat"], partition="")
            for panel in load(MONITORING / "grafana" / "dashboards" / "client.json")["panels"]
            for target in panel["targets"]
            if target["legendFormat"] not in known
        }
        assert len(texts) > 15
        server = '{job="superlink", instance="superlink:8000"}'
        free = '{job="client", instance="c:8000"%s}'
        holds(
            {
                **self.DOWN,
                f"fl_container_memory_bytes{server}": "100x40",
                f"fl_container_memory_limit_bytes{server}": "1000x40",
                f"fl_container_cpu_seconds_total{server}": "0+1x40",
                f"fl_container_cpu_limit_cores{server}": "2x40",
                "fl_client_info" + free % ', name="c", partition="none"': "1x40",
                "fl_container_memory_bytes" + free % "": "100x40",
            },
            {
                ('container:memory:share{container="server"}', "50s"): {
                    'container:memory:share{container="server"}': 0.1
                },
                **{(text, "50s"): {} for text in texts},
            },
        )

    def test_the_run_names_the_file_of_a_model_of_ones_own_without_its_folders(self, holds):
        info = 'fl_run_info{name="x", strategy="fedavg", seed="0", dataset="%s", model="%s"}'
        expected = {}
        series = {}
        for number, (data, model, short_data, short_model) in enumerate(
            [
                ("mnist", "mlp", "mnist", "mlp"),
                (
                    "file:/a/b/digits",
                    "/a/long/way/own_model.py:Net",
                    "file:digits",
                    "own_model.py:Net",
                ),
                ("hf:owner/name", "package.module:Net", "hf:owner/name", "package.module:Net"),
            ]
        ):
            series[info % (data, model)] = "_ " * number + "1 stale"
            labels = (
                f'{{name="x", strategy="fedavg", seed="0", dataset="{short_data}", '
                f'model="{short_model}"}}'
            )
            expected[expression_of("federation", "Run"), f"{5 * number}s"] = {labels: 1}
        holds(series, expected)

    @pytest.mark.parametrize(("number", "lines"), [(12, 12), (13, 3), (40, 3)])
    def test_of_many_clients_three_lines_say_how_they_are_spread(self, holds, number, lines):
        panel = panel_of("federation", "Training time of the clients")
        every = " or ".join(
            f'label_replace(({target["expr"]}), "line", "{n}", "", "")'
            for n, target in enumerate(panel["targets"])
        )
        series = clients(number, "2x10") | {"fl_clients_expected": f"{number}x10"}
        holds(series, {(f"count({every})", "20s"): {"{}": lines}})
        # While a run begins, only some clients have values yet.
        begun = clients(5, "2x10") | {"fl_clients_expected": f"{number}x10"}
        holds(begun, {(f"count({every})", "20s"): {"{}": min(lines, 5)}})

    @pytest.mark.parametrize("panel", GRAPHS)
    def test_no_graph_has_a_line_for_each_of_forty_clients(self, panel):
        for target in panel["targets"]:
            if re.search(r"{{(partition|container)}}", target["legendFormat"]):
                assert target["expr"].endswith("<= 12")

    def test_containers_are_added_up_by_partition_never_by_the_lack_of_one(self):
        for where, expression in expressions():
            assert "sum by (partition) (fl_container" not in expression, where
            if where.startswith("container:"):
                assert "by (partition)" not in expression, where


class TestAlerts:
    def test_these_are_all(self):
        assert set(ALERTS) == {
            "ClientDown",
            "RoundStalled",
            "Straggler",
            "ModelDiverged",
            "ClientMemoryNearLimit",
            "FailuresHigh",
            "CertificateExpires",
            "PrivacyBudget",
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
            "prometheus": {"static_configs": [{"targets": ["dashboards.prometheus:9090"]}]},
        }
        assert config["rule_files"] == ["alerts.yml"]
        assert config["global"]["evaluation_interval"] == "5s"
