"""monitoring/check.py: the shipped files pass, and each thing that Grafana refuses is reported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # monitoring is a folder of the repository, not of the package

from monitoring import check, layout, provisioning  # noqa: E402
from monitoring.alerts import ALERTS  # noqa: E402
from monitoring.checks import templates  # noqa: E402
from monitoring.queries import DASHBOARDS  # noqa: E402

PROVISIONING = Path("monitoring/grafana/provisioning")
RULES = PROVISIONING / "alerting" / "rules.yml"
SOURCES = PROVISIONING / "datasources" / "prometheus.yml"
PROVIDERS = PROVISIONING / "dashboards" / "flsimulation.yml"
FEDERATION = Path("monitoring/grafana/dashboards/federation.json")
CLIENT = Path("monitoring/grafana/dashboards/client.json")
COMPOSE, ENV = Path("compose.yaml"), Path(".env")

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

Tree = Any
Change = Callable[[Tree], object]


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A copy of what the checker reads."""
    shutil.copytree(ROOT / "monitoring" / "grafana", tmp_path / "monitoring" / "grafana")
    for name in (COMPOSE, ENV):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def change(path: Path, how: Change) -> None:
    """Load the file, hand it to ``how``, write it back."""
    if path.name == ".env":
        path.write_text(str(how(path.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    content = path.read_text(encoding="utf-8")
    is_json = path.suffix == ".json"
    tree = json.loads(content) if is_json else yaml.load(content, Loader)
    how(tree)
    written = json.dumps(tree) if is_json else yaml.dump(tree, Dumper=Dumper)
    path.write_text(written, encoding="utf-8")


def test_the_shipped_files_pass(capsys):
    assert check.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("monitoring: 1 datasource, 3 dashboards, ")
    assert f"{len(ALERTS)} alert rules" in said
    assert said.endswith("as Grafana 12 demands\n")


def test_it_runs_as_a_script_from_anywhere(shipped, tmp_path):
    command = [sys.executable, str(ROOT / "monitoring" / "check.py"), str(shipped)]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    (shipped / FEDERATION).write_text("{")
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "federation.json: file: cannot be parsed" in done.stdout


def test_a_folder_without_the_files_is_said_to_have_none(tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "compose.yaml: file: cannot be read: No such file" in said
    assert ".env: file: cannot be read: No such file" in said


def put(*path: Any, value: Any) -> Change:
    """A change that sets the value at a path."""

    def how(tree: Tree) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = value

    return how


def drop(*path: Any) -> Change:
    """A change that removes what is at a path."""

    def how(tree: Tree) -> None:
        for step in path[:-1]:
            tree = tree[step]
        del tree[path[-1]]

    return how


def twice(*path: Any) -> Change:
    """A change that repeats the first item of a list, as a copy that ``with_`` may alter."""

    def how(tree: Tree) -> None:
        for step in path:
            tree = tree[step]
        tree.append(json.loads(json.dumps(tree[0])))

    return how


def both(*changes: Change) -> Change:
    """Several changes, one after the other."""

    def how(tree: Tree) -> None:
        for one in changes:
            one(tree)

    return how


GROUP = ("groups", 0)
RULE = (*GROUP, "rules", 0)
QUERY, CONDITION = (*RULE, "data", 0), (*RULE, "data", 1, "model")
NOTES = (*RULE, "annotations")
SOURCE, PROVIDER = ("datasources", 0), ("providers", 0)
GRAFANA = ("services", "grafana")
ENVIRONMENT = (*GRAFANA, "environment")
POINT = {
    "name": "mail",
    "receivers": [{"uid": "mail", "type": "email", "settings": {"addresses": "a@b.example"}}],
}
ALWAYS = {
    "name": "always",
    "time_intervals": [{"times": [{"start_time": "00:00", "end_time": "24:00"}]}],
}


def notified(point: Tree = POINT, **policy: Any) -> Change:
    """Add a contact point, a mute timing and a policy."""
    added = {
        "contactPoints": [point],
        "muteTimes": [ALWAYS],
        "policies": [{"receiver": "mail", **policy}],
    }

    def how(tree: Tree) -> None:
        tree.update(json.loads(json.dumps(added)))

    return how


def receiver(**fields: Any) -> Tree:
    """The contact point with another receiver."""
    return {**POINT, "receivers": [{**POINT["receivers"][0], **fields}]}


def text(old: str, new: str) -> Change:
    """Another text in .env."""
    return lambda content: content.replace(old, new)


def at_rule(fields: dict[str, Any]) -> Change:
    """Other values of the first rule's keys."""
    return both(*(put(*RULE, key, value=value) for key, value in fields.items()))


# What is changed, in which file, how, and what the one line about it says.
CASES: list[tuple[str, Path, Change, str]] = [
    # alert rules
    ("panel missing", RULES, drop(*NOTES, "__panelId__"), "rules[0] ClientDown: __panelId__ is missing"),
    ("dashboard missing", RULES, drop(*NOTES, "__dashboardUid__"), "__dashboardUid__ is missing"),
    ("panel no number", RULES, put(*NOTES, "__panelId__", value="one"), "must be a whole number, got 'one'"),
    ("panel unknown", RULES, put(*NOTES, "__panelId__", value="999"), "flsim-federation has no panel 999"),
    ("dashboard unknown", RULES, put(*NOTES, "__dashboardUid__", value="x"), "'x' is no dashboard's uid"),
    ("rule uid long", RULES, put(*RULE, "uid", value="u" * 41), "uid must be 1 to 40 of"),
    ("rule uid letters", RULES, put(*RULE, "uid", value="a.b"), "uid must be 1 to 40 of"),
    ("rule uid missing", RULES, drop(*RULE, "uid"), "uid is missing"),
    ("rule uid twice", RULES, put(*GROUP, "rules", 1, "uid", value="flsim-client-down"), "uid 'flsim-client-down' is there twice"),
    ("title missing", RULES, put(*RULE, "title", value=""), "title is missing"),
    ("title long", RULES, put(*RULE, "title", value="t" * 191), "title must be a text of 1 to 190"),
    ("title twice", RULES, put(*GROUP, "rules", 1, "title", value="ClientDown"), "title 'ClientDown' is there twice"),
    ("for", RULES, put(*RULE, "for", value="30"), "for must be a duration such as 1m30s, got '30'"),
    ("keepFiringFor", RULES, put(*RULE, "keepFiringFor", value="soon"), "keepFiringFor must be a duration"),
    ("negative for", RULES, put(*RULE, "for", value="-30s"), "for must be a duration"),
    ("noDataState", RULES, put(*RULE, "noDataState", value="Ok"), "noDataState must be one of NoData, Alerting, OK, KeepLast, got 'Ok'"),
    ("execErrState", RULES, put(*RULE, "execErrState", value="NoData"), "execErrState must be one of Error"),
    ("missing series", RULES, put(*RULE, "missing_series_evals_to_resolve", value=0), "missing_series_evals_to_resolve must be a whole number of at least 1"),
    ("isPaused", RULES, put(*RULE, "isPaused", value="perhaps"), "isPaused must be true or false"),
    ("annotations", RULES, put(*NOTES, "summary", value=["a"]), "annotations must be a mapping of texts"),
    ("reserved label", RULES, put(*RULE, "labels", "__grafana_receiver__", value="x"), "label __grafana_receiver__ is reserved"),
    ("unknown key of a rule", RULES, put(*RULE, "noDataStat", value="OK"), "unknown key noDataStat, which Grafana ignores; did you mean noDataState?"),
    ("unknown key of a group", RULES, put(*GROUP, "folderUid", value="x"), "unknown key folderUid"),
    ("unknown key of a file", RULES, put("group", value=[]), "unknown key group, which Grafana ignores; did you mean groups?"),
    ("unknown key of a query", RULES, put(*QUERY, "datasourceUID", value="x"), "did you mean datasourceUid?"),
    ("interval", RULES, put(*GROUP, "interval", value="15s"), "interval must be a positive multiple of 10s, got '15s'"),
    ("interval 0", RULES, put(*GROUP, "interval", value="0s"), "interval must be a positive multiple of 10s"),
    ("group name", RULES, drop(*GROUP, "name"), "name is missing"),
    ("group folder", RULES, drop(*GROUP, "folder"), "folder is missing"),
    ("group org", RULES, put(*GROUP, "orgId", value="one"), "orgId must be a whole number of at least 1"),
    ("group twice", RULES, both(twice("groups"), put("groups", 1, "rules", value=[])), "group 'federation' is there twice"),
    ("one folder for both", RULES, put(*GROUP, "folder", value="FLSimulation"), "folder 'FLSimulation' is the dashboards' too"),
    ("condition unknown", RULES, put(*RULE, "condition", value="C"), "condition must be one of the refIds A, B, got C"),
    ("condition missing", RULES, drop(*RULE, "condition"), "condition is missing"),
    ("no query", RULES, at_rule({"data": [], "condition": None, "record": {"metric": "m", "from": "A"}, "annotations": {}}), "data has no query"),
    ("refId twice", RULES, twice(*RULE, "data"), "refId A is there twice"),
    ("refId missing", RULES, both(twice(*RULE, "data"), drop(*RULE, "data", 2, "refId")), "refId is missing"),
    ("range", RULES, put(*QUERY, "relativeTimeRange", value={"from": 0, "to": 600}), "relativeTimeRange must have from above to, got 0 and 600"),
    ("range as text", RULES, put(*QUERY, "relativeTimeRange", value={"from": "600s", "to": 0}), "relativeTimeRange must be whole seconds, got '600s' to 0"),
    ("datasource unknown", RULES, put(*QUERY, "datasourceUid", value="prometheus"), "datasourceUid 'prometheus' is no datasource's uid"),
    ("expr missing", RULES, drop(*QUERY, "model", "expr"), "expr is missing"),
    ("expression type", RULES, put(*CONDITION, "type", value="treshold"), "type must be one of classic_conditions, math"),
    ("expression of nothing", RULES, put(*CONDITION, "expression", value="Z"), "expression must name one of the refIds A, B, got 'Z'"),
    ("math of nothing", RULES, both(put(*CONDITION, "type", value="math"), put(*CONDITION, "expression", value="$Q > 0")), "must name one of the refIds A, B, got 'Q'"),
    ("reducer", RULES, both(put(*CONDITION, "type", value="reduce"), put(*CONDITION, "reducer", value="avg")), "reducer must be one of count, last"),
    ("no evaluator", RULES, put(*CONDITION, "conditions", value=[]), "a threshold must have one condition, got 0"),
    ("evaluator", RULES, put(*CONDITION, "conditions", 0, "evaluator", "type", value="above"), "evaluator must be one of gt, lt"),
    ("evaluator's numbers", RULES, put(*CONDITION, "conditions", 0, "evaluator", "type", value="within_range"), "evaluator within_range needs 2 params, got 1"),
    ("settings without receiver", RULES, put(*RULE, "notification_settings", value={"group_by": ["a"]}), "receiver is missing"),
    ("settings' receiver", RULES, put(*RULE, "notification_settings", value={"receiver": "mail"}), "receiver 'mail' is no contact point's name"),
    ("not a mapping", RULES, put(*RULE, "notification_settings", value=[]), "notification_settings must be a mapping, got []"),
    # their templates
    ("${} in a text", RULES, put(*NOTES, "summary", value="${HOME}"), "${...} and $$ are replaced at the start"),
    ("function", RULES, put(*NOTES, "summary", value="{{ $values.A.Value | humanizeSeconds }}"), "calls humanizeSeconds, which Grafana's templates do not have"),
    ("query in a text", RULES, put(*NOTES, "summary", value='{{ query "up" }}'), "calls query, which finds nothing"),
    ("refId of $values", RULES, put(*NOTES, "summary", value="{{ $values.C.Value }}"), "uses $values.C, but the refIds are A, B"),
    ("field of $values", RULES, put(*NOTES, "summary", value="{{ $values.A.Number }}"), "uses .Number of $values.A"),
    ("Prometheus's $value", RULES, put(*NOTES, "summary", value="{{ $value }}"), "uses $value, which is a text about all values"),
    ("variable", RULES, put(*NOTES, "summary", value="{{ $label.job }}"), "uses $label, which nothing sets"),
    ("field", RULES, put(*NOTES, "summary", value="{{ .CommonLabels.job }}"), "uses .CommonLabels; there are .Labels"),
    ("end missing", RULES, put(*NOTES, "summary", value="{{ if $labels.job }}a"), "has if without end"),
    ("end too many", RULES, put(*NOTES, "summary", value="a{{ end }}"), "has end without if"),
    ("brackets", RULES, put(*NOTES, "summary", value='{{ if (eq $labels.a "b" }}a{{ end }}'), "has unequal brackets"),
    ("braces", RULES, put(*NOTES, "summary", value="{{ $labels.a }"), "has {{ or }} without its partner"),
    ("empty action", RULES, put(*NOTES, "summary", value="{{ }}"), "has an empty action"),
    ("empty pipe", RULES, put(*NOTES, "summary", value="{{ $labels.a | }}"), "has a pipe without a command"),
    ("strange sign", RULES, put(*NOTES, "summary", value="{{ $labels.a ? 1 }}"), "has '?' in"),
    ("template in a label", RULES, put(*RULE, "labels", "cause", value="{{ lower $$labels.a }}"), "calls lower"),
    ("dollar in a label", RULES, put(*RULE, "labels", "cause", value="{{ $labels.a }}"), "$labels is replaced, but compose.yaml sets no such variable"),
    # who is notified
    ("point's name", RULES, notified({**POINT, "name": ""}, receiver="empty"), "name is missing"),
    ("receiver's uid", RULES, notified(receiver(uid="")), "uid is missing"),
    ("receiver's type", RULES, notified(receiver(type="e-mail")), "type must be one of prometheus-alertmanager"),
    ("receiver's settings", RULES, notified(receiver(settings={"address": "a@b.example"})), "settings lack addresses"),
    ("receiver's key", RULES, notified(receiver(setting={})), "did you mean settings?"),
    ("receiver twice", RULES, both(notified(), twice("contactPoints", 0, "receivers")), "uid 'mail' is there twice"),
    ("policy twice", RULES, both(notified(), twice("policies")), "orgId '1' is there twice"),
    ("policy's receiver", RULES, notified(receiver="post"), "receiver 'post' is no contact point's name"),
    ("policy without receiver", RULES, notified(receiver=""), "the root policy must name a receiver"),
    ("policy's matchers", RULES, notified(object_matchers=[["a", "=", "b"]]), "the root policy must not have matchers"),
    ("policy's mute timing", RULES, notified(mute_time_intervals=["always"]), "the root policy must not have mute time intervals"),
    ("policy's active timing", RULES, notified(active_time_intervals=["always"]), "the root policy must not have active time intervals"),
    ("policy's key", RULES, notified(group_internval="5m"), "unknown key group_internval, which Grafana ignores; did you mean group_interval?"),
    ("policy's interval", RULES, notified(group_interval="0s"), "group_interval must be a duration above 0"),
    ("policy's wildcard", RULES, notified(group_by=["...", "a"]), "group_by has '...' beside other labels"),
    ("policy's label twice", RULES, notified(group_by=["a", "a"]), "group_by has 'a' twice"),
    ("route's timing", RULES, notified(routes=[{"mute_time_intervals": ["never"]}]), "mute_time_intervals has 'never', which is no mute timing's name"),
    ("route's key", RULES, notified(routes=[{"matcher": []}]), "routes[0]: unknown key matcher"),
    ("mute timing's key", RULES, both(notified(), put("muteTimes", 0, "time_interval", value=[])), "did you mean time_intervals?"),
    ("mute timing twice", RULES, both(notified(), twice("muteTimes")), "name 'always' is there twice"),
    ("mute timing's times", RULES, both(notified(), put("muteTimes", 0, "time_intervals", 0, "times", 0, "end_time", value="24:30")), "times must be from HH:MM to a later HH:MM, got 00:00 to 24:30"),
    ("interval's key", RULES, both(notified(), put("muteTimes", 0, "time_intervals", 0, "days", value=[])), "unknown key days"),
    ("template's text", RULES, put("templates", value=[{"name": "t"}]), "template is missing"),
    ("version that sends e-mail", ENV, text("GRAFANA_TAG=12.4.11", "GRAFANA_TAG=12.3.1"), "Grafana 12.3.1 sends alerts by e-mail"),
    # datasources
    ("access", SOURCES, put(*SOURCE, "access", value="browser"), "access must be one of proxy, direct"),
    ("source's uid", SOURCES, both(twice("datasources"), put("datasources", 1, "uid", value="a b"), put("datasources", 1, "name", value="b"), put("datasources", 1, "isDefault", value=False)), "uid must be 1 to 40 of"),
    ("source's name", SOURCES, drop(*SOURCE, "name"), "name is missing"),
    ("source's type", SOURCES, drop(*SOURCE, "type"), "type is missing"),
    ("source's key", SOURCES, put(*SOURCE, "isdefault", value=True), "unknown key isdefault, which Grafana ignores; did you mean isDefault?"),
    ("source's address", SOURCES, put(*SOURCE, "url", value="prometheus:9090"), "url must be an http or https address"),
    ("source's settings", SOURCES, put(*SOURCE, "jsonData", "timeinterval", value="5s"), "jsonData: unknown key timeinterval"),
    ("source's method", SOURCES, put(*SOURCE, "jsonData", "httpMethod", value="PUT"), "httpMethod must be one of POST, GET"),
    ("source twice", SOURCES, both(twice("datasources"), put("datasources", 1, "uid", value="b"), put("datasources", 1, "isDefault", value=False)), "name 'Prometheus' is there twice"),
    ("source's uid twice", SOURCES, both(twice("datasources"), put("datasources", 1, "name", value="b"), put("datasources", 1, "isDefault", value=False)), "uid 'flsim-prometheus' is there twice"),
    ("two defaults", SOURCES, both(twice("datasources"), put("datasources", 1, "uid", value="b"), put("datasources", 1, "name", value="b")), "isDefault is true for two datasources"),
    ("sources' version", SOURCES, drop("apiVersion"), "apiVersion is missing"),
    ("sources' key", SOURCES, put("purge", value=True), "unknown key purge"),
    ("variable of the environment", SOURCES, put(*SOURCE, "url", value="http://$PROMETHEUS:9090"), "$PROMETHEUS is replaced, but compose.yaml sets no such variable"),
    # the dashboards' folder
    ("provider's name", PROVIDERS, drop(*PROVIDER, "name"), "name is missing"),
    ("provider twice", PROVIDERS, twice("providers"), "name 'FLSimulation' is there twice"),
    ("provider's type", PROVIDERS, put(*PROVIDER, "type", value="folder"), "type must be one of file"),
    ("provider's key", PROVIDERS, put(*PROVIDER, "allowUIUpdates", value=True), "did you mean allowUiUpdates?"),
    ("provider's folder", PROVIDERS, put(*PROVIDER, "folder", value="General"), "folder must not be General"),
    ("provider's folder uid", PROVIDERS, put(*PROVIDER, "folderUid", value="a/b"), "folderUid must be 1 to 40 of"),
    ("folder and structure", PROVIDERS, put(*PROVIDER, "options", "foldersFromFilesStructure", value=True), "folder must be empty with foldersFromFilesStructure"),
    ("provider's interval", PROVIDERS, put(*PROVIDER, "updateIntervalSeconds", value=-1), "updateIntervalSeconds must be a whole number of at least 1"),
    ("provider's options", PROVIDERS, put(*PROVIDER, "options", "paths", value="/x"), "options: unknown key paths"),
    ("provider's path", PROVIDERS, put(*PROVIDER, "options", "path", value="/var/lib/dashboards"), "/var/lib/dashboards, the path of flsimulation.yml"),
    ("providers' version", PROVIDERS, drop("apiVersion"), "apiVersion is missing"),
    # dashboards
    ("board's title", FEDERATION, put("title", value=" "), "title must be a text of 1 to 5000 bytes"),
    ("board's title twice", FEDERATION, put("title", value="One client"), "title in one folder 'One client' is there twice"),
    ("board's id", FEDERATION, put("id", value=7), "id must be null, got 7"),
    ("board's schema", FEDERATION, put("schemaVersion", value=43), "schemaVersion must be a whole number from 1 to 42"),
    ("board without schema", FEDERATION, drop("schemaVersion"), "schemaVersion is missing"),
    ("board's refresh", FEDERATION, put("refresh", value="1s"), "refresh must be auto or a duration of at least 5s, got '1s'"),
    ("board's key", FEDERATION, put("template", value={}), "did you mean templating?"),
    ("choice of refresh", FEDERATION, put("timepicker", "refresh_intervals", value=["1s"]), "refresh interval '1s' is below 5s"),
    ("panel's id twice", FEDERATION, put("panels", 1, "id", value=1), "id 1 is there twice"),
    ("panel's id", FEDERATION, put("panels", 1, "id", value=0), "id must be a whole number from 1 on, got 0"),
    ("panel in a row", FEDERATION, put("panels", 0, value={"id": 1, "type": "row", "title": "r", "gridPos": {"x": 0, "w": 24}, "panels": [{"id": 1, "type": "stat", "gridPos": {"x": 0, "w": 6}}]}), "r.panels[0]: id 1 is there twice"),
    ("panel's type", FEDERATION, put("panels", 0, "type", value="singlestat"), "type 'singlestat' is no panel that Grafana has built in"),
    ("library panel", FEDERATION, put("panels", 0, "libraryPanel", value={"uid": "x"}), "libraryPanel names a library panel"),
    ("panel's place", FEDERATION, put("panels", 0, "gridPos", "w", value=25), "gridPos must be within 24 columns"),
    ("target's refId", FEDERATION, put("panels", 1, "targets", 1, "refId", value="A"), "refId A is there twice"),
    ("panel's source", FEDERATION, put("panels", 0, "datasource", "uid", value="x"), "datasource 'x' is no datasource's uid"),
    ("target's source", FEDERATION, put("panels", 0, "targets", 0, "datasource", "uid", value="x"), "datasource 'x' is no datasource's uid"),
    ("variable of a query", FEDERATION, put("panels", 0, "targets", 0, "expr", value='up{job="$job"}'), "the query uses $job, which is no variable"),
    ("variable's name", CLIENT, both(twice("templating", "list"), put("templating", "list", 1, "name", value="a-b")), "name must be letters, digits and _"),
    ("variable twice", CLIENT, twice("templating", "list"), "variable partition is there twice"),
    ("variable's type", CLIENT, put("templating", "list", 0, "type", value="list"), "type must be one of query"),
    ("variable's query", CLIENT, put("templating", "list", 0, "query", value=""), "query is missing"),
    ("variable's key", CLIENT, put("templating", "list", 0, "includeall", value=True), "did you mean includeAll?"),
    ("variable's source", CLIENT, put("templating", "list", 0, "datasource", "uid", value="x"), "datasource 'x' is no datasource's uid"),
    ("link's tag", FEDERATION, put("links", 0, "tags", value=["x"]), "no dashboard has the tag 'x'"),
    ("link to nowhere", FEDERATION, put("links", 0, "url", value="/d/x?a=b"), "leads to /d/x, which is no dashboard's uid"),
    ("link's variable", FEDERATION, put("links", 0, "url", value="/d/flsim-client?var-client=1"), "sets client, which is no variable of flsim-client"),
    # the service
    ("no service", COMPOSE, drop(*GRAFANA), "there is no service grafana"),
    ("another Grafana", ENV, text("GRAFANA_TAG=12.4.11", "GRAFANA_TAG=13.0.0"), "must be a release of Grafana 12"),
    ("setting", COMPOSE, put(*ENVIRONMENT, "GF_NEWS_FEED_ENABLED", value="false"), "GF_NEWS_FEED_ENABLED is no known setting"),
    ("no setting", COMPOSE, put(*ENVIRONMENT, "NEWS", value="x"), "NEWS is no setting: those start with GF_"),
    ("switch", ENV, text("GRAFANA_ANONYMOUS=true", "GRAFANA_ANONYMOUS=yes"), "GF_AUTH_ANONYMOUS_ENABLED must be true or false, got 'yes'"),
    ("role", COMPOSE, put(*ENVIRONMENT, "GF_AUTH_ANONYMOUS_ORG_ROLE", value="viewer"), "GF_AUTH_ANONYMOUS_ORG_ROLE must be one of Viewer"),
    ("asks its maker", COMPOSE, drop(*ENVIRONMENT, "GF_PLUGINS_PREINSTALL_DISABLED"), "GF_PLUGINS_PREINSTALL_DISABLED must be true"),
    ("password twice", COMPOSE, put(*ENVIRONMENT, "GF_SECURITY_ADMIN_PASSWORD", value="x"), "exclude each other"),
    ("password nowhere", COMPOSE, put(*ENVIRONMENT, "GF_SECURITY_ADMIN_PASSWORD__FILE", value="/run/p"), "/run/p is in no mounted folder"),
    ("provisioning not mounted", COMPOSE, put(*GRAFANA, "volumes", 0, value="./monitoring/grafana:/etc/grafana/provisioning:ro"), "monitoring/grafana/provisioning must be mounted at /etc/grafana/provisioning"),
    ("home", COMPOSE, put(*ENVIRONMENT, "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH", value="/var/lib/grafana/dashboards/home.json"), "home.json is no dashboard in"),
    ("no health check", COMPOSE, drop(*GRAFANA, "healthcheck"), "test is missing"),
    ("health check's program", COMPOSE, put(*GRAFANA, "healthcheck", "test", 1, value="httpie"), "must call curl"),
    ("health check's address", COMPOSE, put(*GRAFANA, "healthcheck", "test", 6, value="http://127.0.0.1:3001/api/health"), "must request /api/health at port 3000"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "how", "words"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_what_grafana_refuses_is_reported_in_one_line(file, how, words, shipped, capsys):
    change(shipped / file, how)
    assert check.main([str(shipped)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].partition(": ")[0] in {str(file), "compose.yaml"}  # which reads .env, mounts
    assert words in lines[0]
    assert "(rule: " in lines[0]


class TestReading:
    """What is not read at all, or cannot be."""

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            (PROVISIONING / "alerting" / "more.txt", "x", "is not read: only .json, .yaml, .yml in alerting/"),
            (PROVISIONING / "datasources" / "more.json", "{}", "is not read: only .yaml, .yml in datasources/"),
            (PROVISIONING / "dashboards" / "deep" / "x.yml", "a: 1", "only .yaml, .yml in dashboards/ itself"),
            (PROVISIONING / "alerts" / "x.yml", "a: 1", "is in no folder that Grafana reads"),
            (RULES, "groups: [", "cannot be parsed"),
            (RULES, "- a", "must be a mapping"),
            (FEDERATION, "[]", "must be a mapping"),
        ],
    )  # fmt: skip
    def test_a_file_is_named(self, name, content, words, shipped, capsys):
        (shipped / name).parent.mkdir(exist_ok=True)
        (shipped / name).write_text(content)
        assert check.main([str(shipped)]) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{name}: file: ")
        assert words in line

    def test_a_dashboard_that_no_provider_reads_is_reported(self, shipped, capsys):
        (shipped / "monitoring" / "grafana" / "more").mkdir()
        board = json.loads((shipped / CLIENT).read_text()) | {"uid": "more", "title": "More"}
        (shipped / "monitoring" / "grafana" / "more" / "more.json").write_text(json.dumps(board))
        assert check.main([str(shipped)]) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert "monitoring/grafana/more has dashboards that no provider reads" in line

    def test_odd_values_are_reported_without_a_traceback(self, shipped, capsys):
        for odd in (None, 5, "x", [], [[]], {"a": [1]}, True):
            for path in (GROUP, RULE, QUERY, CONDITION, NOTES):
                shutil.copy(ROOT / RULES, shipped / RULES)
                change(shipped / RULES, put(*path, value=odd))
                check.main([str(shipped)])
        assert "Traceback" not in capsys.readouterr().out

    def test_a_variable_that_compose_sets_may_stand_in_the_files(self, shipped, capsys):
        change(shipped / COMPOSE, put(*ENVIRONMENT, "GF_SERVER_DOMAIN", value="prometheus"))
        change(shipped / SOURCES, put(*SOURCE, "url", value="http://${GF_SERVER_DOMAIN}:9090"))
        check.main([str(shipped)])
        assert "is replaced" not in capsys.readouterr().out

    def test_alerts_that_are_sent_somewhere_pass(self, shipped, capsys):
        muted = {"object_matchers": [["severity", "=", "info"]], "mute_time_intervals": ["always"]}
        change(shipped / RULES, notified(routes=[muted], group_by=["alertname"]))
        change(shipped / RULES, put(*RULE, "notification_settings", value={"receiver": "mail"}))
        assert check.main([str(shipped)]) == 0, capsys.readouterr().out


class TestTemplates:
    @pytest.mark.parametrize(
        "text",
        [
            "plain {text} with $5",
            '{{ if eq $labels.a "{x" }}a{{ else if $labels.b }}b{{ else }}c{{ end }}',
            "{{ range $name, $value := $labels }}{{ $name }}={{ $value }}{{ end }}",
            '{{- $share := $values.A.Value -}}{{ printf "%.1f" $share }}',
            "{{ with $values.B }}{{ .Value | humanizePercentage }} {{ .Labels.job }}{{ end }}",
            '{{ printf "(%v|" $labels.job }}',
            '{{ (index $values "A").Value | humanizeDuration }}{{/* a note: ?! */}}',
            "{{ .Labels.job }} {{ .Values.A.Value }} {{ .Value }}",
        ],
    )
    def test_what_grafana_can_expand_passes(self, text):
        assert list(templates.check(text, {"A", "B"})) == []


class TestPanels:
    """Each alert and the panel that shows it."""

    @staticmethod
    def panels() -> dict[str, dict[str, str]]:
        """Titles of the panels by dashboard's uid and panel's id."""
        boards = [
            json.loads(path.read_text()) for path in (ROOT / FEDERATION).parent.glob("*.json")
        ]
        return {
            board["uid"]: {str(panel["id"]): panel["title"] for panel in board["panels"]}
            for board in boards
        }

    def test_a_rule_names_the_panel_with_its_alerts_title(self):
        (group,) = yaml.safe_load((ROOT / RULES).read_text())["groups"]
        panels = self.panels()
        shown = {}
        for rule in group["rules"]:
            notes = rule["annotations"]
            assert isinstance(notes["__panelId__"], str)
            shown[rule["title"]] = panels[notes["__dashboardUid__"]][notes["__panelId__"]]
        assert shown == {alert.name: alert.panel for alert in ALERTS}

    def test_a_title_that_no_panel_has_ends_the_generation(self):
        with pytest.raises(
            LookupError, match="alert ClientDown: .*'Clients lost', which none of its"
        ):
            provisioning.panel_link(replace(ALERTS[0], panel="Clients lost"))

    def test_so_does_one_that_several_have(self, monkeypatch):
        one, other = deepcopy(DASHBOARDS["client"]().panels[:2])
        one.title = other.title = "Twins"
        board = layout.build("u", "t", "d", [layout.row(4, one, other)])
        monkeypatch.setitem(DASHBOARDS, "twins", lambda: board)
        with pytest.raises(LookupError, match="got 'Twins', which 2 of its panels have"):
            provisioning.panel_link(replace(ALERTS[0], panel="Twins", dashboard="twins"))

    def test_so_does_an_unknown_dashboard(self):
        with pytest.raises(LookupError, match="dashboard must be one of federation, .*got 'home'"):
            provisioning.panel_link(replace(ALERTS[0], dashboard="home"))
