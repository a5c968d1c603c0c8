"""The way back to a run: listed, followed again, stopped in order, on a real Flower network."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PATIENCE, wait_for
from tests.test_network import (
    SLOW,
    Network,
    at_the_gate,
    driven,
    flsim,
    free_port,
    last_run,
    started,
)
from tests.test_network_verbs import Docker, bound, container, published

from flsimulation.rundir.jsonlines import read_lines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("attach")
    (folder / "runs").mkdir()
    (folder / "slow.py").write_text(SLOW)
    with started(folder, "a", "b") as network:
        yield network


def call(network: Network, *arguments: str) -> subprocess.CompletedProcess[str]:
    return flsim(*arguments, f"--superlink={network.address}", cwd=network.folder)


def listed(network: Network) -> list[dict[str, Any]]:
    done = call(network, "runs", "--json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


class Attached:
    """``flsim attach`` in a terminal of its own; what it has said so far is in a file."""

    def __init__(self, network: Network, *arguments: str) -> None:
        self.output = network.folder / "attached.log"
        command = [sys.executable, "-m", "flsimulation", "attach", *arguments]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, f"--superlink={network.address}"],
                cwd=network.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def says(self, beginning: str) -> bool:
        lines = self.output.read_text().splitlines()
        return any(line.strip().startswith(beginning) for line in lines)


def test_without_a_run_the_verbs_say_what_to_do(network: Network) -> None:
    done = call(network, "runs")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no run since the SuperLink started; flsim run starts one\n"
    for verb in ("attach", "stop"):
        done = call(network, verb)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "flsim: no run is in progress; flsim runs lists earlier runs, flsim run starts one\n"
        )
    done = call(network, "stop", "12")
    assert done.returncode == 2
    assert done.stderr == (
        "flsim: RUN 12: the SuperLink has no such run; flsim runs lists its runs\n"
    )


def test_where_no_superlink_answers_is_one_line(tmp_path: Path) -> None:
    port = free_port()
    done = flsim("attach", f"--superlink=127.0.0.1:{port}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}: no SuperLink answers there" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_without_its_terminal_is_found_refuses_another_and_is_followed_to_its_end(
    network: Network, tmp_path: Path
) -> None:
    with driven(network) as (driver, gate):
        at_the_gate(gate, "a")
        driver.kill()
        (run,) = listed(network)
        name = last_run(network).name
        assert run["run_id"].isdigit()
        assert run["started"].endswith("Z")
        assert {key: run[key] for key in ("name", "state", "rounds", "of_rounds", "run_dir")} == {
            "name": "default",
            "state": "running",
            "rounds": 0,
            "of_rounds": 3,
            "run_dir": f"runs/{name}",
        }
        up_is_refused(network, tmp_path)

        first = Attached(network)
        wait_for("the run's title", lambda: first.says("default: fedavg, 2 clients"))
        first.process.send_signal(signal.SIGINT)
        assert first.process.wait(PATIENCE) == 130
        where = f" --superlink {network.address}"
        assert first.says(
            f"detached, the run is in progress; flsim attach{where} shows it again, "
            f"flsim stop{where} ends it"
        )

        second = Attached(network, run["run_id"][:8])
        gate.unlink()
        assert second.process.wait(PATIENCE) == 0
    lines = second.output.read_text().splitlines()
    assert lines[0].startswith("default: fedavg, 2 clients, 400 examples of mnist (iid)")
    assert [line.split()[0] for line in lines if "/3 " in line] == ["1/3", "2/3", "3/3"]
    assert any(line.startswith("completed: 3 of 3 rounds in ") for line in lines)
    assert lines[-1] == f"Report  runs/{name}/report.html"


def up_is_refused(network: Network, folder: Path) -> None:
    """``flsim up`` asks the SuperLink that the project publishes, not Compose."""
    project, home = folder / "project", folder / "bin"
    for path in (project, home):
        path.mkdir()
    (project / "compose.yaml").write_text("services: {}\n")
    docker = Docker(home, project)
    docker.config = {
        "name": "fl",
        "services": {
            "client": {"command": ["client"], "deploy": {"replicas": 2}},
            "superlink": {
                "ports": published(network.port),
                "volumes": [bound(network.folder / "runs", "runs")],
            },
        },
    }
    docker.set_config()
    docker.answer("info", {"ServerVersion": "27.1.2", "MemTotal": 2**35})
    docker.answer("compose version", "2.40.3")
    docker.answer(f"ps --filter publish={network.port} ", "fl-superlink-1\tfl\n")
    docker.set_containers(container("superlink"))
    kept = {name: value for name, value in os.environ.items() if name != "COMPOSE_FILE"}
    here = {"cwd": project, "env": kept | {"PATH": str(home)}}
    done = flsim("up", **here)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "flsim: a run is in progress (default, 0 of 3 rounds); "
        "flsim attach follows it, flsim stop ends it\n"
    )
    assert docker.calls[-2].startswith("compose ps")
    assert docker.calls[-1] == "compose exec --no-TTY superlink cat /flsim/trust/ca.pem"
    done = flsim("runs", "--json", **here)  # without --superlink: the project's
    assert [run["state"] for run in json.loads(done.stdout)] == ["running"]


def test_a_run_that_is_over_is_replayed_with_its_result(network: Network) -> None:
    wait_for("its end", lambda: listed(network)[0]["state"] != "running")  # said before it is
    (run,) = listed(network)
    assert (run["state"], run["rounds"]) == ("completed", 3)
    done = call(network, "attach", run["run_dir"], "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["state"], result["rounds"]) == ("completed", 3)
    assert result["run_dir"] == run["run_dir"]
    done = call(network, "attach", run["run_id"], "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = call(network, "stop", run["run_id"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"flsim: run {run['run_id']} is over: completed, 3 of 3 rounds\n"


def test_a_failed_run_is_replayed_with_its_error(network: Network) -> None:
    failed = network.run("--set=data.clients=3", "--set=runtime.client-wait=1")
    assert failed.returncode == 1
    wait_for("its end", lambda: listed(network)[0]["state"] != "running")
    newest = listed(network)[0]
    assert (newest["state"], newest["rounds"]) == ("failed", 0)
    done = call(network, "attach", newest["run_id"])
    assert (done.returncode, done.stderr) == (1, failed.stderr)


def test_the_newest_runs_are_listed_first_and_the_others_counted(network: Network) -> None:
    done = call(network, "runs", "--limit=1")
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["run", "name", "state", "rounds", "started", "directory"]
    cells = lines[1].split()
    assert cells[0].isdigit()
    assert cells[1:4] == ["default", "failed", "0/3"]
    assert cells[-1] == f"runs/{last_run(network).name}"
    assert lines[2] == "1 older runs; --limit 2 shows them"


def test_a_stopped_run_ends_in_order_and_its_command_resumes_it(network: Network) -> None:
    with driven(network, "--set=strategy.rounds=8") as (driver, gate):
        at_the_gate(gate, "a")
        driver.kill()
        folder = last_run(network)
        gate.unlink()
        wait_for("the first round", lambda: list(read_lines(folder / "rounds.jsonl")))
        gate.touch()
        done = call(network, "stop")
        assert (done.returncode, done.stderr) == (0, "")
        manifest = json.loads((folder / "manifest.json").read_text())
        rounds = len(list(read_lines(folder / "rounds.jsonl")))
        assert 1 <= rounds < 8
        assert (manifest["state"], manifest["rounds"]) == ("interrupted", rounds)
        assert (folder / "report.html").is_file()
        resume = f"flsim run --resume runs/{folder.name}"
        assert done.stdout.splitlines() == [
            f"interrupted: {rounds} of 8 rounds",
            "",
            f"Report  runs/{folder.name}/report.html",
            f"Resume  {resume}",
        ]
        newest = listed(network)[0]
        assert (newest["state"], newest["rounds"]) == ("interrupted", rounds)
    resumed = flsim(*shlex.split(resume)[1:], "--json", cwd=network.folder)
    assert resumed.returncode == 0, resumed.stderr
    result = json.loads(resumed.stdout)
    assert (result["state"], result["rounds"]) == ("completed", 8)


def test_a_stop_from_elsewhere_says_what_the_log_told_and_the_whole_command(
    network: Network, tmp_path: Path
) -> None:
    port = free_port()  # another name of the same SuperLink
    forward = subprocess.Popen([sys.executable, "-c", FORWARD, str(port), str(network.port)])
    try:
        with driven(network) as (driver, gate):
            at_the_gate(gate, "a")
            driver.kill()
            folder = last_run(network)
            other = f"--superlink=127.0.0.1:{port}"
            wait_for("the forward", lambda: flsim("runs", other, cwd=tmp_path).returncode == 0)
            done = flsim("stop", other, cwd=tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.splitlines() == [
                "interrupted: 0 of 3 rounds",
                "",
                f"Results runs/{folder.name}, on the SuperLink's machine",
            ]
    finally:
        forward.kill()
        forward.wait()


FORWARD = """
import socket, sys, threading
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
def pump(source, target):
    while part := source.recv(65536):
        target.sendall(part)
    target.shutdown(socket.SHUT_WR)
while True:
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""
