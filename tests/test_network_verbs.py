"""The verbs over Docker Compose and the doctor, against a docker that plays back answers."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import typer
from tests.conftest import PATIENCE, wait_for

from flsimulation.cli.deploy import docker as docker_calls
from flsimulation.cli.deploy import doctor, network, ports, status
from flsimulation.cli.main import main
from flsimulation.errors import RunError
from flsimulation.runtimes.network.names import MARK

pytestmark = pytest.mark.seconds

GIB = 2**30
ENGINE = {"ServerVersion": "27.1.2", "DockerRootDir": "/", "MemTotal": 16 * GIB, "CgroupVersion": "2", "MemoryLimit": True}  # fmt: skip
NO_HOST = 'Error response from daemon: Get "https://images.test/v2/": dial tcp: lookup images.test: no such host'  # fmt: skip

PLAYBACK = f"""#!{sys.executable} -IS
import json, os, pathlib, signal, sys, time
home = pathlib.Path(__file__).parent
words = sys.argv[1:]
setting = {{name: os.environ.get(name) for name in ("CLIENTS", "EXPERIMENT")}}
with (home / "calls").open("a") as calls:
    calls.write(json.dumps([words, setting]) + "\\n")
if words[0] == "compose":
    rest = words[1:]
    while rest[0] in ("--profile", "--file", "--ansi"):
        rest = rest[2:]
    words = ["compose", *rest]
answer = {{}}
for beginning, given in json.loads((home / "answers").read_text()):
    if " ".join(words).startswith(beginning):
        answer = given
if "waits" in answer:
    signal.signal(signal.SIGINT, lambda *_: (print("stopped", flush=True), os._exit(130)))
    print("waiting", flush=True)
    (home / "waiting").touch()
    time.sleep(600)
if "makes" in answer:
    report = pathlib.Path(answer["makes"])
    report.parent.mkdir()
    report.write_text("")
sys.stdout.write(answer.get("out", ""))
sys.stderr.write(answer.get("err", ""))
sys.exit(answer.get("status", 0))
"""


class Docker:
    """The docker on PATH: what it is to answer, and what it was asked."""

    def __init__(self, home: Path, project: Path) -> None:
        self.home, self.project = home, project
        self.config: dict[str, Any] = {}
        self._answers: list[tuple[str, dict[str, Any]]] = []
        (home / "docker").write_text(PLAYBACK)
        (home / "docker").chmod(0o755)
        (home / "answers").write_text("[]")

    def answer(self, beginning: str, out: Any = "", **more: Any) -> None:
        """Answer commands that begin so; the last answer that fits is given."""
        text = out if isinstance(out, str) else json.dumps(out)
        self._answers.append((beginning, {"out": text, **more}))
        (self.home / "answers").write_text(json.dumps(self._answers))

    def set_config(self, **services: Any) -> None:
        """Change services of the Compose file."""
        self.config["services"].update(services)
        self.answer("compose config", self.config)

    def set_containers(self, *rows: dict[str, Any]) -> None:
        """What ``docker compose ps`` lists."""
        self.answer("compose ps", "\n".join(json.dumps(row) for row in rows))

    @property
    def raw(self) -> list[tuple[list[str], dict[str, str | None]]]:
        """Every command line with the settings in its environment."""
        calls = self.home / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [tuple(json.loads(line)) for line in lines]  # type: ignore[misc]

    @property
    def calls(self) -> list[str]:
        """Every command line, without the words that name the project."""
        prefix = f"compose --profile * --file {self.project / 'compose.yaml'}"
        return [" ".join(words).replace(prefix, "compose") for words, _ in self.raw]


def container(service: str, number: int = 1, state: str = "running", **more: Any) -> dict[str, Any]:
    return {"Name": f"fl-{service}-{number}", "Service": service, "State": state, "Health": "", "ExitCode": 0, **more}  # fmt: skip


def bound(folder: Path, name: str) -> dict[str, Any]:
    return {"type": "bind", "source": str(folder), "target": f"/work/{name}"}


CLIENT = {"build": {}, "command": ["client", "--superlink", "superlink:8080"], "deploy": {"replicas": 2}, "mem_limit": str(GIB)}  # fmt: skip


def published(port: int) -> list[dict[str, Any]]:
    return [{"host_ip": "127.0.0.1", "published": str(port), "target": 1}]


@pytest.fixture
def free_ports() -> list[int]:
    """Three ports that nothing listens on."""
    probes = [socket.socket() for _ in range(3)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    found = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return found


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_ports: list[int]) -> Docker:
    """A healthy Docker, and a project in the current folder."""
    project, home = tmp_path / "project", tmp_path / "bin"
    for folder in (project, project / "experiments", home):
        folder.mkdir()
    (project / "compose.yaml").write_text("services: {}\n")
    (project / ".env").write_text("CLIENTS=2\n")
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", str(home))
    for name in ("COMPOSE_FILE", "CLIENTS", "EXPERIMENT", "SUPERLINK"):
        monkeypatch.delenv(name, raising=False)
    playback = Docker(home, project)
    superlink, prometheus, grafana = free_ports
    playback.config = {
        "name": "fl",
        "services": {
            "client": CLIENT,
            "grafana": {"image": "graf:1", "ports": published(grafana)},
            "prometheus": {"image": "prom:1", "ports": published(prometheus)},
            "run": {"build": {}},
            "superlink": {
                "build": {},
                "ports": published(superlink),
                "volumes": [bound(project / name, name) for name in ("runs", "experiments")],
            },
        },
    }
    playback.set_config()
    playback.answer("info", ENGINE)
    playback.answer("compose version", "2.40.3-3\n")
    return playback


@pytest.fixture
def flsim(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a verb; give its exit status, output and errors, docker's own included."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.add_typer(network.verbs)
    monkeypatch.setattr("flsimulation.cli.main.app", app)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def listening(free_ports: list[int]) -> Iterator[Callable[[int], None]]:
    """Make this process take a port."""
    taken = []

    def listen(port: int) -> None:
        taken.append(socket.create_server(("127.0.0.1", port)))

    yield listen
    for server in taken:
        server.close()


CHECKS = ["compose config --format json", "info --format {{json .}}", "compose version --short"]
RUNS_THERE = ["compose ps --all --format json"]
IMAGES = ["image inspect --format {{.Id}} prom:1", "image inspect --format {{.Id}} graf:1"]
RUN = "compose up --no-deps --no-log-prefix --force-recreate --exit-code-from run run"
ALL = "superlink client prometheus grafana"


def test_up_checks_builds_starts_and_runs(
    docker: Docker, flsim: Any, free_ports: list[int]
) -> None:
    (docker.project / "experiments" / "mine.toml").write_text("[data]\nclients = 4\n")
    code, output, errors = flsim("up", "experiments/mine.toml")
    assert (code, errors) == (0, "")
    assert docker.calls == [
        *CHECKS,
        *RUNS_THERE,
        *IMAGES,
        f"compose build {ALL} run",
        f"compose up --detach {ALL}",
        *RUNS_THERE,
        RUN,
    ]
    words, settings = docker.raw[0]
    assert words == ["compose", "--profile", "*", "--file", str(docker.project / "compose.yaml"), "config", "--format", "json"]  # fmt: skip
    assert settings == {"CLIENTS": "4", "EXPERIMENT": None}  # it is named from what Compose says
    assert docker.raw[-1][1] == {"CLIENTS": "4", "EXPERIMENT": "experiments/mine.toml"}
    assert (docker.project / "runs").is_dir()
    assert output.splitlines()[-1] == (
        "the network keeps running; flsim up FILE runs another experiment, flsim down stops it"
    )


@pytest.mark.parametrize(
    ("arguments", "commands", "clients"),
    [
        (["--clients", "7"], [f"compose build {ALL} run", f"compose up --detach {ALL}", RUN], "7"),
        (["--no-run"], [f"compose build {ALL}", f"compose up --detach {ALL}"], None),
        (["--no-build", "--no-run"], [f"compose up --detach {ALL}"], None),
        (["--no-run", "--without", "grafana"], ["compose build superlink client prometheus", "compose up --detach superlink client prometheus"], None),
        (["--no-run", "--without", "prometheus"], ["compose build superlink client", "compose up --detach superlink client"], None),
    ],
)  # fmt: skip
def test_options_of_up_reach_compose(
    docker: Docker, flsim: Any, arguments: list[str], commands: list[str], clients: str | None
) -> None:
    assert flsim("up", *arguments)[0] == 0
    assert [c for c in docker.calls if c.startswith(("compose build", "compose up"))] == commands
    assert docker.raw[-1][1] == {"CLIENTS": clients, "EXPERIMENT": None}


def test_clients_on_the_command_line_win_over_those_of_the_file(docker: Docker, flsim: Any) -> None:
    (docker.project / "experiments" / "mine.toml").write_text("[data]\nclients = 4\n")
    assert flsim("up", "experiments/mine.toml", "--clients", "3")[0] == 0
    assert docker.raw[0][1] == {"CLIENTS": "3", "EXPERIMENT": None}
    assert docker.raw[-1][1] == {"CLIENTS": "3", "EXPERIMENT": "experiments/mine.toml"}


def test_up_says_what_to_open(docker: Docker, flsim: Any, free_ports: list[int]) -> None:
    docker.set_containers(container("prometheus"), container("grafana"))
    _, output, _ = flsim("up", "--no-run")
    assert output.splitlines() == [
        f"Grafana     http://localhost:{free_ports[2]}",
        f"Prometheus  http://localhost:{free_ports[1]}",
        "started; flsim up FILE runs an experiment, flsim down stops the network",
    ]


def test_up_says_how_to_see_the_password_of_grafana_but_never_prints_it(
    docker: Docker, flsim: Any
) -> None:
    docker.set_config(**{"grafana-password": {"build": {}}})
    _, output, _ = flsim("up", "--no-run")
    shown = "Password    docker compose exec grafana cat /secret/admin-password"
    assert output.splitlines()[0] == shown
    assert not [call for call in docker.calls if "logs" in call or "exec" in call]
    _, output, _ = flsim("up", "--no-run", "--without", "grafana")
    assert output.count("\n") == 1


def test_up_ends_with_the_status_of_the_run_and_names_its_report(
    docker: Docker, flsim: Any
) -> None:
    report = docker.project / "runs" / "20260101T000000Z-mine" / "report.html"
    docker.answer("compose up --no-deps", "round 1\n", status=1, makes=str(report))
    code, output, errors = flsim("up")
    assert (code, errors) == (1, "")
    assert output.splitlines() == [
        "round 1",
        f"Report      {report}",
        "the network keeps running; flsim up FILE runs another experiment, flsim down stops it",
    ]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (None, ["up", "gone.toml"], "gone.toml: no such file"),
        ("[train]\nepoch = 2\n", ["up", "bad.toml"], "did you mean 'epochs'?"),
        (None, ["up", "--without", "client"], "--without client: only prometheus and grafana can be omitted"),
        (None, ["up", "--clients", "0"], "--clients"),
        (None, ["status", "--file", "gone.yaml"], "--file gone.yaml: no such file"),
        (None, ["doctor", "--file", "gone.yaml"], "--file gone.yaml: no such file"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_no_docker_is_called(
    docker: Docker, flsim: Any, text: str | None, arguments: list[str], message: str
) -> None:
    if text:
        (docker.project / "bad.toml").write_text(text)
    code, output, errors = flsim(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("flsim: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert docker.calls == []


def test_an_experiment_that_the_containers_cannot_see_is_refused(
    docker: Docker, flsim: Any
) -> None:
    (docker.project / "mine.toml").write_text("")
    assert flsim("up", "mine.toml") == (
        2,
        "",
        f"flsim: mine.toml: the containers can only read {docker.project}/experiments; "
        "copy the file there, with the files that it refers to\n",
    )


def test_an_experiment_is_named_from_where_one_stands(
    docker: Docker, flsim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docker.project / "experiments" / "mine.toml").write_text("")
    monkeypatch.chdir(docker.project / "experiments")
    assert flsim("up", "mine.toml")[0] == 0
    assert docker.raw[-1][1] == {"CLIENTS": "2", "EXPERIMENT": "experiments/mine.toml"}


def test_an_image_is_fetched_if_it_is_not_there(docker: Docker, flsim: Any) -> None:
    docker.answer("image inspect --format {{.Id}} prom:1", err="No such image: prom:1", status=1)
    code, output, errors = flsim("up", "--no-run")
    assert (code, errors) == (0, "")
    assert "compose pull --quiet prometheus" in docker.calls
    assert "compose pull --quiet grafana" not in docker.calls
    assert output.splitlines()[0] == "pulling prom:1 ..."


def test_without_an_image_for_grafana_the_rest_goes_on(docker: Docker, flsim: Any) -> None:
    docker.answer("image inspect --format {{.Id}} graf:1", err="No such image: graf:1", status=1)
    docker.answer("compose pull --quiet grafana", err=f" grafana Pulling\n{NO_HOST}\n", status=1)
    code, _, errors = flsim("up", "--no-run")
    assert code == 0
    assert errors == (
        "flsim: continuing without grafana (graf:1): an image cannot be downloaded "
        '(Get "https://images.test/v2/": dial tcp: lookup images.test: no such host); '
        "check the connection, the proxy, and the versions in .env\n"
    )
    assert docker.calls[-2] == "compose up --detach superlink client prometheus"


def test_without_an_image_for_prometheus_nothing_starts(docker: Docker, flsim: Any) -> None:
    docker.answer("image inspect", err="No such image", status=1)
    docker.answer("compose pull", err="manifest unknown\n", status=1)
    code, _, errors = flsim("up")
    assert code == 1
    assert errors == (
        "flsim: prometheus (prom:1): an image cannot be downloaded (manifest unknown); "
        "check the connection, the proxy, and the versions in .env\n"
    )
    assert not any(call.startswith("compose up") for call in docker.calls)


def test_up_again_finds_its_own_ports_and_goes_on(
    docker: Docker, flsim: Any, listening: Any, free_ports: list[int]
) -> None:
    listening(free_ports[0])
    docker.answer(f"ps --filter publish={free_ports[0]} ", "fl-superlink-1\tfl\n")
    docker.set_containers(container("superlink"), container("run", state="exited"))
    assert flsim("up")[0] == 0
    form = '{{.Names}}\t{{.Label "com.docker.compose.project"}}'
    assert docker.calls[3] == f"ps --filter publish={free_ports[0]} --format {form}"
    assert docker.calls[-1] == RUN


def test_a_superlink_that_does_not_answer_yet_has_no_run(docker: Docker, flsim: Any) -> None:
    docker.set_containers(container("superlink"), container("run"))
    assert flsim("up")[0] == 0
    assert docker.calls[-1] == RUN


def test_a_port_that_a_container_of_others_has_is_named(
    docker: Docker, flsim: Any, listening: Any, free_ports: list[int]
) -> None:
    port = free_ports[2]
    listening(port)
    docker.answer(f"ps --filter publish={port} ", "blog-web-1\tblog\n")
    code, _, errors = flsim("up")
    free = next(p for p in range(port + 1, 65536) if not ports.taken("127.0.0.1", p))
    assert code == 1
    assert errors == (
        f"flsim: port {port} is used by the container blog-web-1; "
        f"end it, or set GRAFANA_PORT={free} in .env\n"
    )


def test_a_port_that_a_program_has_is_named(
    docker: Docker, flsim: Any, listening: Any, free_ports: list[int]
) -> None:
    listening(free_ports[1])
    code, _, errors = flsim("up")
    assert code == 1
    assert errors.startswith(f"flsim: port {free_ports[1]} is used by ")
    assert f"(process {os.getpid()}); end it, or set PROMETHEUS_PORT=" in errors
    assert docker.calls[-1].startswith("ps --filter publish=")


def test_clients_that_do_not_fit_are_refused_unless_asked_for_by_number(
    docker: Docker, flsim: Any
) -> None:
    docker.answer("info", ENGINE | {"MemTotal": 3 * GIB})
    docker.set_config(client=CLIENT | {"deploy": {"replicas": 3}})
    line = (
        "flsim: memory: 3.0 GiB; 3 clients need about 3.4 GiB, 2 fit; "
        "start fewer (flsim up --clients 2) or give Docker more memory\n"
    )
    code, _, errors = flsim("up")
    assert (code, errors) == (1, line)
    code, _, errors = flsim("up", "--clients", "3")
    assert (code, errors) == (0, line)


def test_a_failed_build_shows_its_lines_and_starts_nothing(docker: Docker, flsim: Any) -> None:
    docker.answer("compose build", err="no matching distribution\n", status=1)
    code, _, errors = flsim("up")
    assert code == 1
    assert errors.splitlines() == [
        "no matching distribution",
        "flsim: the image could not be built; see the lines above",
    ]
    assert docker.calls[-1] == f"compose build {ALL} run"


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("Error response from daemon: driver failed on endpoint x: Bind for 127.0.0.1:3000 failed: port is already allocated", "port 3000 is used by another program; end it, or choose another port (flsim doctor shows both)"),
        ("Error: listen tcp4 127.0.0.1:9090: bind: address already in use", "port 9090 is used by another program; end it, or choose another port (flsim doctor shows both)"),
        ("dependency failed to start: container fl-superlink-1 is unhealthy", "fl-superlink-1 did not become healthy; flsim logs says why"),
        ("dependency failed to start: container fl-superlink-1 exited (1)", "fl-superlink-1 did not become healthy; flsim logs says why"),
        ("write /var/lib/x: no space left on device", "the disk is full; docker system prune removes unused images and containers"),
        ("something new\nand its last line", "docker compose up failed: and its last line"),
        ("", "docker compose up failed: without a message"),
    ],
)  # fmt: skip
def test_a_failed_start_is_explained(docker: Docker, flsim: Any, said: str, meaning: str) -> None:
    docker.answer("compose up --detach", err=f" Container fl Creating\n{said}\n", status=1) if said else docker.answer("compose up --detach", status=1)  # fmt: skip
    code, _, errors = flsim("up")
    assert code == 1
    assert errors.splitlines()[-1] == f"flsim: {meaning}"
    assert docker.calls[-1] == f"compose up --detach {ALL}"


@pytest.mark.parametrize("verb", ["up", "down", "status", "logs"])
@pytest.mark.parametrize(
    ("command", "said", "meaning"),
    [
        ("compose config", "docker: 'compose' is not a docker command.\nSee 'docker --help'", "Docker has no Compose 2; install its plugin (the package docker-compose-plugin, or Docker Desktop)"),
        ("compose config", "unknown flag: --profile\n\nUsage:  docker [OPTIONS] COMMAND", "Docker has no Compose 2; install its plugin (the package docker-compose-plugin, or Docker Desktop)"),
        ("compose config", "services.x: required variable GRAFANA is missing a value", "docker compose config failed: services.x: required variable GRAFANA is missing a value"),
        ("", "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?", "Docker is installed, but its engine is not running; start it (sudo systemctl start docker, or open Docker Desktop)"),
        ("", 'permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get "http://x": dial unix /var/run/docker.sock: connect: permission denied', "no access to Docker: permission denied on its socket; add yourself to its group (sudo usermod -aG docker $USER) and log in again"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_docker_is_one_line_with_the_remedy(
    docker: Docker, flsim: Any, verb: str, command: str, said: str, meaning: str
) -> None:
    docker.answer(command, err=said, status=1)
    code, output, errors = flsim(verb)
    assert (code, output, errors) == (1, "", f"flsim: {meaning}\n")


@pytest.mark.parametrize("verb", ["up", "down", "status", "logs"])
def test_without_docker_one_line_says_so(
    docker: Docker, flsim: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    code, output, errors = flsim(verb)
    assert (code, output) == (1, "")
    assert errors == (
        "flsim: docker is not installed, or not on PATH; install Docker Engine or Docker Desktop "
        "(flsim run needs neither)\n"
    )


@pytest.mark.parametrize(
    ("command", "answer", "message"),
    [
        ("info", ENGINE | {"ServerVersion": "19.03.8"}, "Docker Engine 19.03.8 is too old: 20.10 or newer is needed; update it"),
        ("compose version", "v2.5.1", "Docker Compose v2.5.1 is too old: 2.20 or newer is needed; update it"),
        ("info", {"ServerErrors": ["it sleeps"]}, "Docker's engine does not answer (it sleeps); start it"),
    ],
)  # fmt: skip
def test_an_old_docker_is_refused_before_anything_starts(
    docker: Docker, flsim: Any, command: str, answer: Any, message: str
) -> None:
    docker.answer(command, answer)
    assert flsim("up") == (1, "", f"flsim: {message}\n")
    assert not any(call.startswith(("compose build", "compose up")) for call in docker.calls)


@pytest.mark.parametrize("command", ["compose config", "info"])
def test_an_answer_that_is_no_json_is_one_line(docker: Docker, flsim: Any, command: str) -> None:
    docker.answer(command, "Emulate Docker CLI")
    line = "flsim: docker printed 'Emulate Docker CLI' instead of JSON; is `docker` Docker's own command?\n"
    assert flsim("up") == (1, "", line)


def test_a_docker_that_hangs_is_given_up(docker: Docker) -> None:
    docker.answer("info", waits=True)
    with pytest.raises(RunError, match=r"docker info did not answer within 0.3 s; restart Docker"):
        docker_calls.ask("info", seconds=0.3)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["down"], "compose down --remove-orphans"),
        (["down", "-v"], "compose down --remove-orphans --volumes"),
        (["logs"], "compose logs"),
        (["logs", "client", "run", "--follow"], "compose logs --follow client run"),
        (["logs", "--raw"], "compose logs"),
    ],
)
def test_down_and_logs_reach_compose(
    docker: Docker, flsim: Any, arguments: list[str], command: str
) -> None:
    docker.answer(command, "what docker prints\n")
    assert flsim(*arguments) == (0, "what docker prints\n", "")  # no event, so as it is
    assert docker.calls == [CHECKS[0], command]


def test_logs_of_a_service_that_is_not_there(docker: Docker, flsim: Any) -> None:
    assert flsim("logs", "clients") == (
        2,
        "",
        "flsim: no service 'clients'; did you mean 'client'?\n",
    )


def test_ctrl_c_is_passed_on_and_waited_for(docker: Docker, flsim: Any) -> None:
    docker.answer("compose logs", waits=True)

    def press() -> None:
        wait_for("the playback", (docker.home / "waiting").exists)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=press)
    thread.start()
    code, output, errors = flsim("logs", "--follow")
    thread.join()
    assert (code, output, errors) == (130, "waiting\nstopped\n", "")
    assert signal.getsignal(signal.SIGINT) is before


def event(**content: Any) -> str:
    return f"superlink-1  | {MARK}{json.dumps(content)}\n"


EVENTS = {
    event(**{"run-dir": "runs/x"}): "the run is written to runs/x",
    event(event="RunStarted", experiment={"name": "mine", "strategy.name": "fedavg", "data.clients": 4, "strategy.rounds": 3}): "run mine started: fedavg, 4 clients, 3 rounds",
    event(event="ClientsConnected", partitions=[0, 2], expected=4): "2 of 4 clients connected",
    event(event="PhaseStarted", round=1, phase="train", cohort=[0]): None,
    event(event="ClientReplied", round=1, phase="train", partition=2, metrics={}, reason=None, error=None): None,
    event(event="ClientReplied", round=1, phase="train", partition=2, metrics={}, reason="lost", error="it went away"): "round 1: client 2 failed (lost): it went away",
    event(event="RoundFinished", round=1, central={"loss": 0.5, "accuracy": 0.25}, federated=None, failures={"lost": 1}, seconds={"total": 1.5}): "round 1: accuracy 0.2500, loss 0.5000, 1.50 s, 1 failed",
    event(event="RoundFinished", round=2, central=None, federated={"loss": 0.125}, failures={}, seconds={"total": 2.0}): "round 2: loss 0.1250, 2.00 s",
    event(event="RunFinished", state="failed", rounds=2, seconds=9.04, error="no client"): "run failed after 2 rounds, 9.0 s: no client",
    event(event="RunFinished", state="completed", rounds=3, seconds=9.0, error=None): "run completed after 3 rounds, 9.0 s",
    event(error="another run", input=False): "another run",
    event(result={"state": "completed"}): None,
    event(model=1, safetensors="AAAA"): None,
}  # fmt: skip


def test_logs_show_events_as_lines_for_people(docker: Docker, flsim: Any) -> None:
    broken = f"superlink-1  | {MARK}{{cut\n"
    other = event(event="RoundFinished", round=7)  # of another version
    plain = "client-1     | a line of Flower's\n"
    docker.answer("compose logs", "".join((plain, *EVENTS, broken, other, plain)))
    code, output, errors = flsim("logs")
    assert (code, errors) == (0, "")
    said = [f"superlink-1  | flsim: {text}\n" for text in EVENTS.values() if text]
    assert output == "".join((plain, *said, broken, other, plain))
    assert flsim("logs", "--raw")[1] == "".join((plain, *EVENTS, broken, other, plain))


def test_logs_end_with_their_reader(docker: Docker) -> None:
    docker.answer("compose logs", "a line\n" * 100_000)
    command = [sys.executable, "-m", "flsimulation", "logs"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as whole:
        assert whole.stdout is not None
        assert whole.stderr is not None
        assert whole.stdout.readline() == "a line\n"
        whole.stdout.close()
        try:
            assert whole.wait(PATIENCE) == 1  # as click ends where nobody reads
        finally:
            whole.kill()
        assert whole.stderr.read() == ""


def test_folders_are_those_that_compose_resolved(
    docker: Docker, flsim: Any, room: Any, tmp_path: Path
) -> None:
    results, mine = tmp_path / "results", tmp_path / "mine"
    mine.mkdir()
    (mine / "fast.toml").write_text("[data]\nclients = 4\n")
    (mine / "hidden.toml").touch(mode=0o600)
    superlink = docker.config["services"]["superlink"]
    volumes = [bound(results, "runs"), bound(mine, "experiments")]
    docker.set_config(superlink=superlink | {"volumes": volumes})
    _, output, _ = flsim("doctor")
    lines = output.splitlines()
    assert f"✓ disk for results: 50.0 GB free at {tmp_path}" in lines
    assert f"✓ results: {results} does not exist yet and can be created" in lines
    assert f"✗ {mine / 'hidden.toml'} cannot be read in containers; chmod -R a+rX {mine}" in lines
    report = results / "20260101T000000Z-fast" / "report.html"
    docker.answer("compose up --no-deps", makes=str(report))
    code, output, errors = flsim("up", mine / "fast.toml")
    assert (code, errors) == (0, "")
    assert docker.raw[-1][1] == {"CLIENTS": "4", "EXPERIMENT": "experiments/fast.toml"}
    assert f"Report      {report}" in output.splitlines()
    assert not (docker.project / "runs").exists()
    assert flsim("up", docker.project / "experiments" / "mine.toml")[0] == 2


def test_the_compose_file_is_found_above_or_named(
    docker: Docker, flsim: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(docker.project / "experiments")
    assert flsim("down")[0] == 0
    assert docker.calls[-1] == "compose down --remove-orphans"
    monkeypatch.chdir(tmp_path)
    assert flsim("down", "--file", "project/compose.yaml")[0] == 0
    assert docker.calls[-1] == "compose down --remove-orphans"
    other = tmp_path / "more.yaml"
    other.write_text("")
    monkeypatch.setenv("COMPOSE_FILE", f"project/compose.yaml{os.pathsep}more.yaml")
    assert flsim("down")[0] == 0
    assert docker.calls[-1] == f"compose --file {other} down --remove-orphans"


def test_without_a_compose_file_one_line_says_where_to_be(
    docker: Docker, flsim: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in ("up", "down", "status", "logs"):
        assert flsim(verb) == (
            2,
            "",
            "flsim: no compose.yaml here or in a folder above; run it in a clone of the repository, "
            "or specify the file with --file or COMPOSE_FILE\n",
        )
    monkeypatch.setenv("COMPOSE_FILE", "gone.yaml")
    assert flsim("down") == (2, "", "flsim: COMPOSE_FILE gone.yaml: no such file\n")


def test_the_network_of_somebody_else_is_left_alone(docker: Docker, flsim: Any) -> None:
    docker.answer("compose config", {"name": "blog", "services": {"web": {}}})
    for verb in ("up", "down", "status", "logs"):
        assert flsim(verb) == (
            2,
            "",
            f"flsim: {docker.project}/compose.yaml is not FLSimulation's Compose file: it has no service "
            "superlink and no client; specify the right file with --file\n",
        )
    assert set(docker.calls) == {CHECKS[0]}


def test_status_of_nothing(docker: Docker, flsim: Any) -> None:
    assert flsim("status") == (0, "no container is running; flsim up starts the network\n", "")


RUNNING = (
    container("grafana"),
    container("client", 10),
    container("client", 9),
    container("superlink", Health="healthy"),
    container("run", state="exited", ExitCode=1),
)
METRICS = """# HELP fl_run_state 1 for the state that the run is in.
fl_run_state{state="running"} 1.0
fl_run_state{state="failed"} 0.0
fl_run_rounds 10.0
fl_run_round 3.0
fl_global_accuracy{source="federated"} 0.5
fl_global_accuracy{source="central"} 0.91234
fl_clients_connected 2.0
fl_clients_expected 3.0
"""


@pytest.mark.parametrize("form", ["lines", "list"])
def test_status_shows_containers_run_and_addresses(
    docker: Docker, flsim: Any, free_ports: list[int], form: str
) -> None:
    docker.set_containers(*RUNNING)
    if form == "list":  # as Compose gave it before 2.21
        docker.answer("compose ps", list(RUNNING))
    docker.answer("exec fl-superlink-1 python -c", METRICS)
    docker.answer("exec fl-client-9 python -c", 'fl_client_info{partition="1"} 1.0\n')
    docker.answer("exec fl-client-10 python -c", "fl_client_info 1.0\n")
    code, output, errors = flsim("status")
    assert (code, errors) == (0, "")
    assert [line.split() for line in output.splitlines()] == [
        ["service", "container", "state", "health", "partition"],
        ["superlink", "fl-superlink-1", "running", "healthy", "-"],
        ["client", "fl-client-9", "running", "-", "1"],
        ["client", "fl-client-10", "running", "-", "-"],
        ["run", "fl-run-1", "exited", "(1)", "-", "-"],
        ["grafana", "fl-grafana-1", "running", "-", "-"],
        [],
        ["run", "running,", "3", "of", "10", "rounds,", "accuracy", "0.9123", "(central)"],
        ["clients", "2", "of", "3", "connected"],
        ["Grafana", f"http://localhost:{free_ports[2]}"],
    ]


def test_status_when_all_has_ended(docker: Docker, flsim: Any) -> None:
    docker.set_containers(container("superlink", state="exited", ExitCode=137))
    code, output, _ = flsim("status")
    assert code == 0
    assert [line.split() for line in output.splitlines()[1:]] == [
        ["superlink", "fl-superlink-1", "exited", "(137)", "-", "-"],
        ["no", "container", "is", "running;", "flsim", "up", "starts", "the", "network"],
    ]
    assert not any(call.startswith("exec") for call in docker.calls)


def test_status_when_no_container_answers(docker: Docker, flsim: Any) -> None:
    docker.set_containers(container("superlink"), container("client"))
    docker.answer("exec", err="container is not running", status=1)
    code, output, errors = flsim("status")
    assert (code, errors) == (0, "")
    assert output.splitlines()[-1] == "run         no run has begun"


class Prometheus(http.server.BaseHTTPRequestHandler):
    """Answers the query for this project's metrics."""

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)["query"][0]
        assert query.startswith('{__name__=~"fl_run_state|fl_run_round')
        series = [
            ({"__name__": "fl_run_state", "state": "completed", "job": "superlink"}, "1"),
            ({"__name__": "fl_run_state", "state": "running", "job": "superlink"}, "0"),
            ({"__name__": "fl_run_round", "job": "superlink"}, "5"),
            ({"__name__": "fl_run_rounds", "job": "superlink"}, "5"),
            ({"__name__": "fl_global_accuracy", "source": "central"}, "NaN"),
            ({"__name__": "fl_global_accuracy", "source": "federated"}, "0.25"),
        ]
        result = [{"metric": metric, "value": [0, value]} for metric, value in series]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": {"result": result}}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("answers", [True, False])
def test_status_asks_the_superlink_first_and_prometheus_if_that_is_silent(
    docker: Docker, flsim: Any, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_SECONDS", PATIENCE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Prometheus)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    docker.set_config(prometheus={"image": "prom:1", "ports": published(server.server_port)})
    docker.set_containers(container("superlink"), container("prometheus"))
    if answers:
        docker.answer("exec fl-superlink-1 python -c", METRICS)
    else:
        docker.answer("exec", err="container is not running", status=1)
    try:
        _, output, _ = flsim("status")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    lines = output.splitlines()
    assert lines[-1] == f"Prometheus  http://localhost:{server.server_port}"
    said = {
        True: "run         running, 3 of 10 rounds, accuracy 0.9123 (central)",
        False: "run         completed, 5 of 5 rounds, accuracy 0.2500 (federated)",
    }
    assert said[answers] in lines
    assert said[not answers] not in lines


def test_metrics_are_read_as_prometheus_itself_reads_them() -> None:
    text = (
        'a{state="x",job="y"} NaN\nb_total +Inf\n# b 1\nc{partition="1",note="a b} \\"c\\""} 2e3\n'
    )
    assert status.parse_metrics(text) | {"a": {}} == {
        "a": {},
        "b_total": {"": float("inf")},
        "c": {"1": 2000.0},
    }
    assert status.parse_metrics("Traceback (most recent call last):\n  ...\n") == {}


def gauges(**series: dict[str, float]) -> status.Samples:
    running = {"fl_run_state": {"running": 1.0}}
    counts = {"fl_clients_connected": {"": 8.0}, "fl_clients_expected": {"": 10.0}}
    return running | counts | series


@pytest.mark.parametrize(
    ("samples", "lines"),
    [
        (gauges(), ["clients     8 of 10 connected"]),
        (gauges(fl_client_connected={"0": 1, "1": 1}), ["clients     8 of 10 connected"]),
        (gauges(fl_client_connected={"10": 0, "0": 1, "9": 0}), ["clients     8 of 10 connected, not clients 9, 10"]),
        (gauges(fl_client_awaited={"1": 1, "2": 0}, fl_client_connected={"1": 0, "2": 1}, fl_phase_started_timestamp_seconds={"": 988.0}), ["clients     8 of 10 connected, not client 1", "waiting     client 1 (not connected), for 12 s"]),
        (gauges(fl_client_awaited={"1": 1, "2": 1, "3": 1}, fl_client_connected={"1": 1, "2": 0, "3": 1}, fl_phase_started_timestamp_seconds={"": 800.4}), ["clients     8 of 10 connected, not client 2", "waiting     client 2 (not connected) and clients 1, 3, for 3 min 20 s"]),
        (gauges(fl_client_awaited={str(p): 1 for p in range(8)}, fl_phase_started_timestamp_seconds={"": 0.0}), ["clients     8 of 10 connected", "waiting     clients 0, 1, 2, 3, 4 and 3 more"]),
        (gauges(fl_run_state={"completed": 1.0}, fl_client_awaited={"1": 1}), ["clients     8 of 10 connected"]),
    ],
)  # fmt: skip
def test_status_names_who_is_away_and_whom_the_round_waits_for(
    samples: status.Samples, lines: list[str]
) -> None:
    assert status.run_lines(samples, now=1000.0)[1:] == lines


def test_clients_are_found_by_what_they_run(docker: Docker, flsim: Any) -> None:
    docker.set_config(
        slow={"command": ["client", "--superlink", "superlink:8080"]}, labelled={"command": ["sh", "-c", "flsim client"], "labels": {"flsimulation.role": "client"}}, other={"command": ["client"], "labels": {"flsimulation.role": "observer"}}, silent={"command": None}
    )  # fmt: skip
    names = ("client", "slow", "labelled", "other", "silent")
    docker.set_containers(*(container(name) for name in names))
    docker.answer("exec", 'fl_client_info{partition="3"} 1.0\n')
    _, output, _ = flsim("status")
    rows = [line.split() for line in output.splitlines()[1:6]]
    assert {row[0]: row[-1] for row in rows} == {
        "client": "3",
        "slow": "3",
        "labelled": "3",
        "other": "-",
        "silent": "-",
    }
    assert sum(call.startswith("exec") for call in docker.calls) == 3


def test_clients_of_an_override_are_started_and_counted_unless_a_profile_keeps_them(
    docker: Docker, flsim: Any
) -> None:
    slow = {"command": ["client"], "image": "flsimulation"}
    docker.set_config(slow=slow, later=slow | {"profiles": ["later"]})
    docker.answer("info", ENGINE | {"MemTotal": 2 * GIB})
    code, _, errors = flsim("up", "--no-run", "--no-build", "--clients", "2")
    assert code == 0
    assert "; 3 clients need about " in errors
    assert f"compose up --detach {ALL} slow" in docker.calls


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Free bytes of the disk, as the doctor sees them."""
    facts = {"free": 50e9}

    class Usage:
        @property
        def free(self) -> float:
            return facts["free"]

    monkeypatch.setattr("flsimulation.cli.deploy.folders.shutil.disk_usage", lambda _: Usage())
    return facts


def test_the_doctor_finds_nothing_wrong(
    docker: Docker, flsim: Any, room: Any, free_ports: list[int]
) -> None:
    (docker.project / "runs").mkdir()
    code, output, errors = flsim("doctor")
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("✓ Python 3.")
    assert lines[1].startswith("✓ ")
    assert lines[1].endswith(" packages, all in the required versions")
    superlink, prometheus, grafana = free_ports
    runs = docker.project / "runs"
    assert lines[2:] == [
        f"✓ Compose file: {docker.project}/compose.yaml",
        f"✓ settings: {docker.project}/.env",
        "✓ Docker Engine 27.1.2",
        "✓ Docker Compose 2.40.3-3",
        f"✓ port {superlink} (superlink) is free",
        f"✓ port {prometheus} (prometheus) is free",
        f"✓ port {grafana} (grafana) is free",
        "✓ control groups version 2",
        "✓ disk for Docker's images: 50.0 GB free at /",
        f"✓ disk for results: 50.0 GB free at {runs}",
        f"✓ results: {runs} is writable and belongs to {runs.owner()}",
        "✓ memory: 16.0 GiB; 2 clients need about 2.7 GiB, 20 fit",
    ]


def test_the_doctor_finds_everything_wrong(
    docker: Docker, flsim: Any, room: Any, listening: Any, free_ports: list[int]
) -> None:
    (docker.project / ".env").unlink()
    room["free"] = 0.5e9
    listening(free_ports[0])
    listening(free_ports[1])
    docker.answer(f"ps --filter publish={free_ports[0]} ", "fl-superlink-1\tfl\n")
    docker.answer("info", ENGINE | {"ServerVersion": "18.9.1", "MemTotal": GIB, "MemoryLimit": False})  # fmt: skip
    docker.answer("compose version", "2.19.0")
    docker.set_config(
        client=CLIENT | {"deploy": {"resources": {"limits": {"memory": str(GIB // 2)}}}}
    )
    code, output, errors = flsim("doctor", "--clients", "1")
    assert (code, errors) == (1, "")
    lines = output.splitlines()[3:]
    taken = lines.pop(4)
    assert taken.startswith(f"✗ port {free_ports[1]} is used by ")
    assert f"(process {os.getpid()}); end it, or set PROMETHEUS_PORT=" in taken
    assert lines == [
        f"! no .env in {docker.project}; copy it from the repository, it sets versions and defaults",
        "✗ Docker Engine 18.9.1 is too old: 20.10 or newer is needed; update it",
        "✗ Docker Compose 2.19.0 is too old: 2.20 or newer is needed; update it",
        f"✓ port {free_ports[0]} (superlink) is used by this project's own fl-superlink-1",
        f"✓ port {free_ports[2]} (grafana) is free",
        "! control groups version 2: memory limits of containers have no effect here",
        "✗ disk for Docker's images: 0.5 GB free at /, 6 GB needed; docker system prune removes unused images and containers",
        f"✗ disk for results: 0.5 GB free at {docker.project}, 1 GB needed; remove old runs",
        f"✓ results: {docker.project}/runs does not exist yet and can be created",
        "✗ memory: 1.0 GiB; 1 client needs about 2.0 GiB, 0 fit; give Docker more memory",
        "! the memory limit of a client is 0.5 GiB and it needs about 0.7 GiB: it may be killed; set CLIENT_MEMORY=1g in .env",
    ]  # fmt: skip


def test_the_doctor_names_files_that_containers_cannot_read(
    docker: Docker, flsim: Any, room: Any
) -> None:
    for name in ("experiments", "monitoring"):
        (docker.project / name / "deep").mkdir(parents=True, exist_ok=True)
    hidden = docker.project / "monitoring" / "deep" / "rules.yml"
    hidden.touch(mode=0o600)
    (docker.project / "experiments").chmod(0o700)
    code, output, _ = flsim("doctor")
    assert code == 1
    assert [line for line in output.splitlines() if line.startswith("✗")] == [
        f"✗ {folder} cannot be read in containers; chmod -R a+rX {named}"
        for folder, named in (
            (docker.project / "experiments", docker.project / "experiments"),
            (hidden, docker.project / "monitoring"),
        )
    ]
    hidden.chmod(0o644)
    (docker.project / "experiments").chmod(0o755)
    assert flsim("doctor")[0] == 0


def test_the_doctor_without_docker_and_without_a_project(
    docker: Docker, flsim: Any, room: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("flsimulation.cli.deploy.doctor.taken", lambda host, port: False)
    monkeypatch.chdir(tmp_path)
    code, output, _ = flsim("doctor")
    assert code == 0
    assert output.splitlines()[2] == (
        "! no compose.yaml here or in a folder above: flsim run works, flsim up needs a clone of the repository"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    code, output, _ = flsim("doctor")
    assert code == 1
    assert output.splitlines()[3:8] == [
        "✗ docker is not installed, or not on PATH; install Docker Engine or Docker Desktop (flsim run needs neither)",
        "✓ port 8080 (superlink) is free",
        "✓ port 8081 (clients) is free",
        "✓ port 9090 (prometheus) is free",
        "✓ port 3000 (grafana) is free",
    ]  # fmt: skip
    assert "✓ memory: " in output


def test_the_doctor_says_what_compose_cannot_read(docker: Docker, flsim: Any, room: Any) -> None:
    docker.answer("compose config", err="line 3: mapping values are not allowed", status=15)
    code, output, _ = flsim("doctor")
    assert code == 1
    assert "✗ docker compose config failed: line 3: mapping values are not allowed\n" in output


def test_the_doctor_names_packages_outside_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"torch": "2.3.0+cpu", "rich": "14.0"}
    needs = ["torch>=2.9", "rich>=13.9", "nowhere-to-be-found>=1", "pytest>=99; extra == 'dev'"]
    real = doctor.metadata.version
    monkeypatch.setattr("flsimulation.cli.deploy.doctor.metadata.requires", lambda _: needs)
    monkeypatch.setattr("flsimulation.cli.deploy.doctor.metadata.version", lambda n: facts.get(n) or real(n))  # fmt: skip
    monkeypatch.setattr("flsimulation.cli.deploy.doctor.platform.python_version", lambda: "3.10.2")
    assert [(check.level, check.text) for check in doctor.python_checks()] == [
        ("bad", "Python 3.10.2; >=3.11 is needed"),
        ("bad", "torch: 2.3.0+cpu is installed, >=2.9 is needed; pip install 'torch>=2.9'"),
        ("bad", "nowhere-to-be-found: none is installed, >=1 is needed; pip install 'nowhere-to-be-found>=1'"),
    ]  # fmt: skip
    needs[:] = ["rich>=13.9", "rich<15"]
    assert list(doctor.python_checks())[1].text == "2 packages, all in the required versions"


def test_the_doctor_says_who_owns_results_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    monkeypatch.setattr("flsimulation.cli.deploy.doctor.os.access", lambda path, mode: False)
    monkeypatch.setattr("flsimulation.cli.deploy.folders.getpass.getuser", lambda: "ann")
    check = doctor.runs_check(runs)
    assert (check.level, check.text) == (
        "bad",
        f"{runs} belongs to {runs.owner()} and is not writable for you; sudo chown -R ann {runs}",
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [("2.40.3-3", (2, 40)), ("v2.27.0-desktop.1", (2, 27)), ("20.10.24+dfsg1", (20, 10)), ("dev", (0, 0))],
)  # fmt: skip
def test_versions_are_read_whatever_stands_around_them(text: str, found: tuple[int, int]) -> None:
    assert docker_calls.version(text) == found


def test_the_help_of_every_verb_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, os\nfrom flsimulation.cli.main import app\n"
        "import typer.main\ncommand = typer.main.get_command(app)\n"
        "for name in (None, *command.commands):\n"
        "    with contextlib.redirect_stdout(open(os.devnull, 'w')):\n"
        "        app([name, '--help'] if name else ['--help'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'pytorch_lightning', 'numpy', 'flwr', 'pydantic', 'http.client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
