"""The very files that users run, on a real Docker engine: network, monitoring, and what goes wrong.

Grafana's container is left out: its dashboards are asked of the real Prometheus here, and checked
against Grafana's schema in test_monitoring.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PATIENCE, wait_for
from tests.test_network import flsim, free_port

from flsimulation.rundir import RunRecord
from flsimulation.rundir.jsonlines import read_lines

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
OWNER = 1234  # of the folder of the results: nobody who is in the image

HUNGRY = '''
import torch
from flsimulation.models import MLP

class Hungry(MLP):
    """Takes more memory than a client may have, on the client that holds partition 1's data."""
    def training_step(self, batch, index):
        if len(batch[0]) > 2 and self.trainer.current_epoch == 0 and not hasattr(self, "fed"):
            self.fed = torch.ones(2**29)  # 2 GiB
        return super().training_step(batch, index)
'''
PATIENT = '''
import time
from pathlib import Path
from flsimulation.models import MLP

class Patient(MLP):
    """Takes a second a step, and stands still while a file is there."""
    def training_step(self, batch, index):
        if len(batch[0]) > 2:
            time.sleep(1.0)
            while Path(__file__).with_name("gate").exists():
                time.sleep(0.1)
        return super().training_step(batch, index)
'''


def docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


needed = pytest.mark.skipif(
    not docker_answers() and "CI" not in os.environ, reason="no Docker engine answers here"
)
pytestmark = [pytest.mark.containers, needed]


class Stack:
    """The compose project under a name and on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.runs.mkdir()
        os.chown(self.runs, OWNER, OWNER)
        self.experiments = folder / "experiments"
        shutil.copytree(ROOT / "experiments", self.experiments)
        self.ports = {
            name: free_port() for name in ("SUPERLINK", "CLIENTS", "PROMETHEUS", "GRAFANA")
        }
        self.environment = {
            **os.environ,
            **{f"{name}_PORT": str(port) for name, port in self.ports.items()},
            "RUNS": str(self.runs),
            "EXPERIMENTS": str(self.experiments),
            "COMPOSE_PROJECT_NAME": "flsimulation-test",
        }
        self.environment.pop("CLIENTS", None)

    def __call__(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "compose", *arguments],
            cwd=ROOT,
            env=self.environment | more,
            capture_output=True,
            text=True,
            check=False,
            timeout=1500,
        )

    def up(self, **more: str) -> None:
        done = self("up", "--detach", "--wait", "superlink", "client", "prometheus", **more)
        assert done.returncode == 0, done.stderr

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self("run", "--rm", "--no-TTY", "run", *arguments, **more)

    def containers(self, service: str) -> list[dict[str, Any]]:
        ids = self("ps", "--quiet", service).stdout.split()
        shown = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True)
        return list(json.loads(shown.stdout))

    def last_run(self) -> Path:
        return max(self.runs.glob("2*"), key=lambda path: path.stat().st_mtime_ns)

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS']}/api/v1/{path}"
        asked = f"{url}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[float]:
        found = self.ask("query", query=expression)["result"]
        return [float(item["value"][1]) for item in found]

    def experiment(self, name: str, code: str, more: str = "") -> str:
        (self.experiments / f"{name}.py").write_text(code)
        text = (
            f'name = "{name}"\n[data]\nclients = 2\nexamples-per-client = 200\n'
            f'[model]\nclass = "{name}.py:{name.capitalize()}"\n{more}'
        )
        (self.experiments / f"{name}.toml").write_text(text)
        return f"experiments/{name}.toml"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("containers"))
    try:
        built = stack("build", "superlink")
        assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
        stack.up()
        yield stack
    finally:
        stack("down", "--volumes", "--timeout", "5")


@pytest.fixture(scope="module")
def default_run(stack: Stack) -> Path:
    """The default experiment, run on the fresh network; Prometheus has seen its end."""
    done = stack.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(line.startswith("completed: 3 of 3 rounds") for line in done.stdout.splitlines())
    wait_for("the last scrape", lambda: stack.values("fl_run_state{state='completed'}") == [1.0])
    return stack.last_run()


def test_results_land_on_this_machine_and_belong_to_the_folders_owner(default_run: Path) -> None:
    names = {path.name for path in default_run.iterdir()}
    assert names >= {"rounds.jsonl", "model.safetensors", "report.html", "manifest.json"}
    owners = {path.stat().st_uid for path in [default_run, *default_run.rglob("*")]}
    assert owners == {OWNER}
    manifest = json.loads((default_run / "manifest.json").read_text())
    assert (manifest["state"], manifest["rounds"]) == ("completed", 3)


def test_every_target_is_up_and_every_query_of_panels_and_rules_answers(
    stack: Stack, default_run: Path
) -> None:
    from monitoring.queries import queries

    def jobs() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for target in stack.ask("targets", state="active")["activeTargets"]:
            found.setdefault(target["labels"]["job"], []).append(target["health"])
        return found

    everything = {"superlink": ["up"], "client": ["up", "up"], "prometheus": ["up"]}
    wait_for("all targets up", lambda: jobs() == everything)
    asked = [query for query in queries() if query.answers]
    assert len(asked) > 50

    # Rates of the last minute answer soon after the run, means of rules some scrapes later.
    silent = {f"{query.source}: {query.expression}": query.expression for query in asked}
    until = time.monotonic() + PATIENCE
    while silent and time.monotonic() < until:
        silent = {who: asks for who, asks in silent.items() if not stack.values(asks)}
        time.sleep(2)
    assert sorted(silent) == []


def test_metrics_are_what_the_run_directory_says(stack: Stack, default_run: Path) -> None:
    lines = RunRecord(default_run).rounds
    assert stack.values("fl_rounds_total") == [3.0]
    assert stack.values("fl_run_rounds") == [3.0]
    last = lines[-1]["central"]
    assert stack.values("fl_global_accuracy{source='central'}") == [last["accuracy"]]
    assert stack.values("fl_global_loss{source='central'}") == [last["loss"]]
    assert stack.values("fl_clients_connected") == [2.0]

    def fits() -> dict[str, str]:
        found = stack.ask("query", query="fl_client_fits_total")["result"]
        return {item["metric"]["partition"]: item["value"][1] for item in found}

    wait_for("the clients' last scrapes", lambda: fits() == {"0": "3", "1": "3"})
    assert stack.values("sum(fl_client_examples_total)") == [3 * 2 * 4500.0]
    # what passed the network is what the server counts, both ways
    sent = sum(line["bytes"]["up"] for line in lines)
    (received,) = stack.values("sum(fl_client_message_bytes_total{direction='up'})")
    assert sent <= received < 1.1 * sent + 10_000  # the last evaluation is in no round
    limits = "fl_container_memory_limit_bytes{job='client'}"
    wait_for("both limits", lambda: stack.values(limits) == [2.0**30, 2.0**30])
    for memory in stack.values("fl_container_memory_bytes{job='client'}"):
        assert 200e6 < memory < 2**30
    for seconds in stack.values("fl_container_cpu_seconds_total"):
        assert 1 < seconds < 1000
    for cores in stack.values("fl_container_cpu_limit_cores"):
        assert cores == os.cpu_count()


def test_no_alert_of_trouble_fires_on_a_healthy_network(stack: Stack, default_run: Path) -> None:
    firing = stack.ask("query", query="ALERTS{alertstate='firing'}")["result"]
    assert [
        item["metric"]["alertname"] for item in firing if item["metric"]["alertname"] != "NoRun"
    ] == []
    rules = stack.ask("rules")["groups"]
    assert all(rule["health"] == "ok" for group in rules for rule in group["rules"])


def test_containers_have_no_more_rights_than_they_need(stack: Stack) -> None:
    for service in ("superlink", "client", "prometheus"):
        for container in stack.containers(service):
            host = container["HostConfig"]
            assert host["ReadonlyRootfs"]
            assert host["CapDrop"] == ["ALL"]
            assert host["SecurityOpt"] == ["no-new-privileges:true"]
            for published in (container["NetworkSettings"]["Ports"] or {}).values():
                assert {p["HostIp"] for p in published or []} <= {"127.0.0.1"}
    (superlink,) = stack.containers("superlink")
    assert owners_of(superlink["State"]["Pid"]) == {OWNER}
    for client in stack.containers("client"):
        assert owners_of(client["State"]["Pid"]) == {1000}
        assert not [p for p in (client["NetworkSettings"]["Ports"] or {}).values() if p]


def test_logs_processes_and_memory_are_bounded_and_enough(stack: Stack, default_run: Path) -> None:
    memory = {"superlink": 2**32, "client": 2**30, "prometheus": 2**30}
    for service, limit in memory.items():
        for container in stack.containers(service):
            host = container["HostConfig"]
            assert (host["Memory"], host["MemorySwap"]) == (limit, limit)
            assert host["PidsLimit"] == 1024
            assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
            if service != "prometheus":
                assert host["Tmpfs"] == {"/tmp": "exec,mode=1777,size=1g"}
            assert not container["State"]["OOMKilled"]
            found = subprocess.run(
                ["docker", "stats", "--no-stream", "--format", "{{json .}}", container["Id"]],
                capture_output=True,
                text=True,
            )
            assert int(json.loads(found.stdout)["PIDs"]) < 1024 / 2


def owners_of(init: int) -> set[int]:
    """Users of a container's processes, but for its init."""
    found = subprocess.run(["pgrep", "-P", str(init)], capture_output=True, text=True)
    return {Path(f"/proc/{process}").stat().st_uid for process in found.stdout.split()}


def test_the_network_gives_what_one_process_gives(stack: Stack, default_run: Path) -> None:
    superlink = f"--superlink=127.0.0.1:{stack.ports['SUPERLINK']}"
    ca = stack.runs.parent / "ca.pem"
    exported = flsim("certs", "--export", str(ca), cwd=ROOT, env=stack.environment)
    assert exported.returncode == 0, exported.stderr
    done = flsim("verify", superlink, cwd=ca.parent, env=os.environ | {"FLSIM_CA": str(ca)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("agree: 3 rounds, ")
    assert stack.values("fl_rounds_total") != []


def test_up_twice_changes_nothing(stack: Stack) -> None:
    before = [c["Id"] for c in stack.containers("client") + stack.containers("superlink")]
    stack.up()
    after = [c["Id"] for c in stack.containers("client") + stack.containers("superlink")]
    assert after == before


def follow(stack: Stack, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["docker", "compose", "run", "--rm", "--no-TTY", "run", *arguments],
        cwd=ROOT,
        env=stack.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_round(stack: Stack, name: str, number: int) -> Callable[[], bool]:
    """Whether a run of this name is in the training of round ``number``."""

    def check() -> bool:
        runs = list(stack.runs.glob(f"2*-{name}"))
        lines = list(read_lines(runs[-1] / "rounds.jsonl")) if runs else []
        return any(line["round"] == number - 1 for line in lines)

    return check


def is_at_work(container: str) -> bool:
    """Whether a client has received a message to which it has not replied."""
    done = subprocess.run(["docker", "logs", container], capture_output=True, text=True)
    logs = done.stdout + done.stderr
    return logs.rfind("Received successfully") > logs.rfind("Sending: ")


def test_a_client_killed_in_round_two_is_counted_comes_back_and_is_used_again(
    stack: Stack,
) -> None:
    more = "[strategy]\nrounds = 5\n[round]\ndeadline = 120.0\n[runtime]\nreturn-wait = 90.0\n"
    experiment = stack.experiment("gated", PATIENT.replace("Patient", "Gated"), more)
    gate = stack.experiments / "gate"
    partitions = json.loads((stack.runs / ".partitions.json").read_text())
    with follow(stack, experiment) as driver:
        wait_for("round 2", in_round(stack, "gated", 2))
        gate.touch()
        victim = stack.containers("client")[0]
        wait_for("its training", lambda: is_at_work(victim["Id"]))  # idle, it would lose nothing
        os.kill(victim["State"]["Pid"], signal.SIGKILL)
        gate.unlink()
        out, err = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, out + err
    lines = RunRecord(stack.last_run()).rounds
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5]
    failures = [sum(line["failures"].values()) for line in lines]
    assert sum(failures) >= 1
    assert lines[-1]["cohort"] == [0, 1]
    assert lines[-1]["failures"] == {}
    assert json.loads((stack.runs / ".partitions.json").read_text()) == partitions
    assert sum(stack.values("sum(fl_client_failures_total)")) >= 1
    # Docker starts it again: before it is missed, or after
    name = victim["Config"]["Hostname"]
    missed = rf"client \d \({name}\) disconnected, waiting for it for up to 90 s"
    assert re.search(rf"{missed}|client \d failed \(lost\): it was restarted", out)
    assert "Traceback" not in out + err


def test_a_run_whose_terminal_is_gone_is_found_stopped_in_order_and_resumed(stack: Stack) -> None:
    experiment = stack.experiment("patient", PATIENT, "[strategy]\nrounds = 3\n")
    gate = stack.experiments / "gate"
    with follow(stack, experiment) as driver:
        wait_for("the run", lambda: list(stack.runs.glob("2*-patient")))
        wait_for("round 2", in_round(stack, "patient", 2))
        gate.touch()
        label = "label=com.docker.compose.{}"
        mine = [label.format("project=flsimulation-test"), label.format("service=run")]
        words = [word for one in mine for word in ("--filter", one)]
        ids = subprocess.run(["docker", "ps", "--quiet", *words], capture_output=True, text=True)
        subprocess.run(["docker", "kill", *ids.stdout.split()], capture_output=True, check=True)
        driver.communicate(timeout=PATIENCE)
    name = stack.last_run().name
    inside = stack("exec", "--no-TTY", "superlink", "flsim", "runs", "--json")
    assert inside.returncode == 0, inside.stderr
    newest = json.loads(inside.stdout)[0]
    assert (newest["name"], newest["state"]) == ("patient", "running")
    assert newest["run_dir"] == f"runs/{name}"
    second = flsim("up", "--no-build", "--without=prometheus", cwd=ROOT, env=stack.environment)
    assert second.returncode == 1
    assert second.stderr.startswith("flsim: a run is in progress (patient, ")
    stopped = flsim("stop", cwd=ROOT, env=stack.environment)
    gate.unlink()
    assert stopped.returncode == 0, stopped.stderr
    manifest = json.loads((stack.runs / name / "manifest.json").read_text())
    rounds = len(RunRecord(stack.runs / name).rounds)
    assert (manifest["state"], manifest["rounds"]) == ("interrupted", rounds)
    assert stopped.stdout.splitlines() == [
        f"interrupted: {rounds} of 3 rounds",
        "",
        f"Report  {stack.runs / name / 'report.html'}",
        f"Resume  CLIENTS=2 docker compose run --rm run --resume runs/{name}",
    ]
    resumed = stack.run("--resume", f"runs/{name}", CLIENTS="2")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert json.loads((stack.runs / name / "manifest.json").read_text())["rounds"] == 3
    logs = flsim("logs", "superlink", cwd=ROOT, env=stack.environment).stdout
    assert f"flsim: run interrupted after {rounds} rounds" in logs
    assert "flsim-event" not in logs


def test_a_client_out_of_memory_is_lost_and_says_so(stack: Stack) -> None:
    experiment = stack.experiment("hungry", HUNGRY, "[strategy]\nrounds = 1\n")
    done = stack.run(experiment)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("flsim: ")]
    assert len(said) == 1
    assert said[0].startswith("flsim: round 1: 0 of 2 clients succeeded, 1 needed; ")
    wait_for(
        "the count of the lost",
        lambda: stack.values("fl_client_failures_total{reason='lost'}") >= [2.0],
    )
    assert "Traceback" not in done.stdout + done.stderr
    logs = stack("logs", "--no-log-prefix", "client").stdout
    assert re.search(
        r"a message's process was ended by SIGKILL, (most likely )?out of memory; "
        r"CLIENT_MEMORY is 1024m, it needs more",
        logs,
    )
    assert "out of memory; CLIENT_MEMORY is 1024m" in said[0]
    done = stack.run()  # the clients are back
    assert done.returncode == 0, done.stdout + done.stderr


def health(container: str) -> str:
    form = "{{.State.Health.Status}} {{.RestartCount}}"
    done = subprocess.run(
        ["docker", "inspect", "--format", form, container], capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_client_that_fits_too_tightly_degrades_the_run_and_is_named(stack: Stack) -> None:
    stack("up", "--detach", "--wait", "--no-deps", "--force-recreate", "client")
    (one, *_) = [c["Id"] for c in stack.containers("client")]  # new: it takes little yet
    limit = ["--memory=460m", "--memory-swap=460m"]
    subprocess.run(["docker", "update", *limit, one], check=True, capture_output=True)
    done = stack.run("--set=strategy.rounds=2")
    assert done.returncode == 3, done.stdout + done.stderr
    summary = done.stdout.partition("degraded: 2 of 2 rounds in ")[2]
    (partition,) = re.findall(r"^client (\d) never succeeded: the model is made", summary, re.M)
    assert re.search(rf"^\d replies failed or lost: client {partition}, all$", summary, re.M)
    cause = r"ended by SIGKILL, (most likely )?out of memory; CLIENT_MEMORY is 460m, about "
    assert re.search(cause, done.stdout)
    manifest = json.loads((stack.last_run() / "manifest.json").read_text())
    assert (manifest["state"], manifest["rounds"]) == ("degraded", 2)
    crashes = 'fl_client_crashes_total{partition="none"}'
    assert stack.values(crashes) == []
    stack("up", "--detach", "--no-deps", "--force-recreate", "client")


def test_a_client_that_does_not_fit_at_all_is_unhealthy_and_says_what_it_needs(
    stack: Stack,
) -> None:
    stack("up", "--detach", "--no-deps", "client", CLIENT_MEMORY="160m")
    clients = [c["Id"] for c in stack.containers("client")]
    wait_for("bad health", lambda: [health(c) for c in clients] == ["unhealthy 0"] * 2)

    def logs() -> str:
        return stack("logs", "--no-log-prefix", "client").stdout

    said = (
        r"the program of this container was ended by SIGKILL, (most likely )?out of memory; "
        r"CLIENT_MEMORY is 160m, about 650m are needed; restart in 4 s\n"
    )
    wait_for("the third pause", lambda: re.search(said, logs()))
    assert "Traceback" not in logs()
    stack.up()
    assert [health(c["Id"]) for c in stack.containers("client")] == ["healthy 0"] * 2
    done = stack.run("--set=strategy.rounds=1")  # with enough memory they are of use again
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_superlink_may_be_restarted_between_runs(stack: Stack) -> None:
    partitions = json.loads((stack.runs / ".partitions.json").read_text())
    assert stack("restart", "superlink").returncode == 0
    done = stack.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((stack.runs / ".partitions.json").read_text()) == partitions


def test_a_running_network_takes_five_clients_and_another_experiment(stack: Stack) -> None:
    stack.up(CLIENTS="5")
    assert len(stack.containers("client")) == 5
    done = stack.run("--set=data.examples-per-client=200", "experiments/noniid.toml", CLIENTS="5")
    assert done.returncode == 0, done.stdout + done.stderr
    cohorts = {
        partition for line in RunRecord(stack.last_run()).rounds for partition in line["cohort"]
    }
    assert cohorts == {0, 1, 2, 3, 4}
    counts = [
        len(line["histogram"]) if "histogram" in line else 0
        for line in [json.loads((stack.last_run() / "manifest.json").read_text())["data"]]
    ]
    assert counts == [5]


def test_bad_input_is_one_line_and_status_two(stack: Stack) -> None:
    done = stack.run("experiments/nowhere.toml", CLIENTS="5")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("flsim: ")]
    assert said == [
        "flsim: experiments/nowhere.toml: no such file; give the path of an experiment file"
    ]


def test_a_change_of_code_costs_no_new_install(stack: Stack, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("runs", ".venv", ".git", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=ignored)
    module = copy / "src" / "flsimulation" / "__init__.py"
    module.write_text(module.read_text() + "\n# changed\n")
    built = subprocess.run(
        ["docker", "build", "--progress=plain", "--target=package", "."],
        cwd=copy,
        env=os.environ | {"DOCKER_BUILDKIT": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    steps = built.stderr.split("\n\n")
    (install,) = [step for step in steps if "requirements.txt" in step and "pip" in step]
    assert install.splitlines()[-1].endswith("CACHED")


def test_down_with_volumes_leaves_only_the_results(stack: Stack) -> None:
    done = stack("down", "--volumes", "--timeout", "10")
    assert done.returncode == 0
    kept = subprocess.run(
        ["docker", "volume", "ls", "--quiet", "--filter", "name=flsimulation-test"],
        capture_output=True,
        text=True,
    )
    assert kept.stdout == ""
    assert stack("ps", "--all", "--quiet").stdout == ""
    assert [path for path in stack.runs.glob("2*") if (path / "report.html").is_file()]
