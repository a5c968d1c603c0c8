"""The container network as users start it: what a client reaches, and where secrets are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import wait_for
from tests.test_containers import OWNER, ROOT, Stack, needed
from tests.test_network import flsim, free_port

from flsimulation.security.keys import ensure_key, fingerprint
from flsimulation.security.register import Register

pytestmark = [pytest.mark.containers, needed]

PROBE = """
import json, socket, sys, urllib.request
def says(host, port):
    try:
        with socket.create_connection((host, port), 3):
            pass
    except OSError as error:
        return type(error).__name__
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=3):
            return "metrics"
    except Exception:
        return "no metrics"
hosts = {a[4][0] for name in sys.argv[1].split() for a in socket.getaddrinfo(name, None)}
own = {a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None)}
found = {f"{h}:{p}": says(h, p) for h in sorted(hosts - own) for p in (8000, 8080, 8081, 9090)}
found["control"] = says("control", 8080)
found["internet"] = says("192.0.2.1", 443)
print(json.dumps(found))
"""


class Secured(Stack):
    """The project under a name and on ports of its own, as a user starts it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment["COMPOSE_PROJECT_NAME"] = "tls-test"

    def containers(self, service: str) -> list[dict[str, Any]]:
        """With those that have ended."""
        ids = self("ps", "--all", "--quiet", service).stdout.split()
        shown = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True)
        return list(json.loads(shown.stdout))

    def inside(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        return self("exec", "--no-TTY", service, *command)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    stack = Secured(tmp_path_factory.mktemp("security"))
    try:
        built = stack("build", "superlink")
        assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
        stack.up()
        done = stack.run("--set=strategy.rounds=1", "--set=data.examples-per-client=200")
        assert done.returncode == 0, done.stdout + done.stderr
        yield stack
    finally:
        stack("down", "--volumes", "--timeout", "5")


def register(stack: Secured) -> dict[str, str]:
    """Key of each admitted client."""
    found = json.loads((stack.runs / ".clients.json").read_text())
    return {one["name"]: one["key"] for one in found["clients"]}


def test_a_client_reaches_only_what_it_needs(stack: Secured) -> None:
    done = stack.inside("client", "python", "-c", PROBE, "superlink client prometheus")
    found = json.loads(done.stdout)
    assert found.pop("control") == "gaierror"
    assert found.pop("internet") in ("TimeoutError", "OSError")
    ports = {port: {v for k, v in found.items() if k.endswith(f":{port}")} for port in (8000, 8080)}
    assert ports == {
        8000: {"no metrics", "ConnectionRefusedError"},
        8080: {"ConnectionRefusedError"},
    }
    assert "no metrics" in {v for k, v in found.items() if k.endswith(":8081")}  # it is TLS
    assert {v for k, v in found.items() if k.endswith(":9090")} == {"ConnectionRefusedError"}

    def up() -> set[str]:
        return {item["metric"]["job"] for item in stack.ask("query", query="up == 1")["result"]}

    wait_for("all scrapes", lambda: up() == {"superlink", "client", "prometheus"})


TLS = """
import http.client, json, socket, ssl
found = {}
def tell(name, call):
    try:
        found[name] = call()
    except Exception as error:
        found[name] = type(error).__name__
def plain():
    connection = http.client.HTTPConnection("superlink", 8081, timeout=10)
    connection.request("GET", "/")
    return connection.getresponse().status
def tls(context, name="superlink"):
    with socket.create_connection(("superlink", 8081), 10) as raw:
        with context.wrap_socket(raw, server_hostname=name) as wrapped:
            return wrapped.version()
ours = ssl.create_default_context(cafile="/flsim/trust/ca.pem")
tell("plain HTTP", plain)
tell("another CA", lambda: tls(ssl.create_default_context()))
tell("another name", lambda: tls(ours, "example"))
tell("ours", lambda: tls(ours))
print(json.dumps(found))
"""


def test_what_is_not_tls_of_our_ca_is_refused(stack: Secured) -> None:
    found = json.loads(stack.inside("client", "python", "-c", TLS).stdout)
    assert found.pop("plain HTTP") in (
        "RemoteDisconnected",
        "ConnectionResetError",
        "BadStatusLine",
    )
    assert found == {
        "another CA": "SSLCertVerificationError",
        "another name": "SSLCertVerificationError",
        "ours": "TLSv1.3",
    }


def test_a_client_submits_lists_and_stops_nothing(stack: Secured) -> None:
    for verb in (["runs"], ["stop"], ["run", "--runtime=network"]):
        done = stack.inside("client", "flsim", *verb, "--superlink=superlink:8081")
        assert done.returncode != 0, done.stdout
        assert "completed" not in done.stdout
    here = stack.inside("superlink", "flsim", "runs", "--json")
    assert len(json.loads(here.stdout)) == 1


def test_a_restarted_client_comes_back_with_its_key(stack: Secured) -> None:
    before = register(stack)
    names = {c["Config"]["Hostname"] for c in stack.containers("client")}
    assert set(before) == names
    assert stack("restart", "client").returncode == 0
    done = stack.run("--set=strategy.rounds=1", "--set=data.examples-per-client=200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert register(stack) == before


def test_a_revoked_container_is_out(stack: Secured) -> None:
    victim = stack.containers("client")[0]["Config"]["Hostname"]
    key = stack.inside("client", "sh", "-c", "cat /flsim/waiting/8081/* 2>/dev/null; true").stdout
    assert key == ""  # the SuperLink took the public keys
    ended = stack.inside("superlink", "flsim", "revoke", victim)
    assert ended.returncode == 0, ended.stderr
    sets = ("--set=strategy.rounds=1", "--set=runtime.client-wait=30")
    done = stack.run(*sets)
    assert "1 of 2 clients connected within 30 s" in done.stderr
    status = flsim("status", cwd=ROOT, env=stack.environment)
    assert f"{victim} SHA256:" in status.stdout
    assert "(revoked)" in status.stdout


def test_a_container_cannot_claim_the_name_of_a_machine_elsewhere(
    stack: Secured, tmp_path: Path
) -> None:
    thief = ensure_key(tmp_path / "thief.key")
    claim = f"printf '%s' '{thief}' > /flsim/waiting/8081/berlin.pub"
    assert stack.inside("client", "sh", "-c", claim).returncode == 0
    found = Register(stack.runs / ".clients.json")
    who = f"berlin {fingerprint(thief)}"
    wait_for("the refusal", lambda: found.refused().get(who) == 1)
    assert "berlin" not in register(stack)


def test_a_machine_elsewhere_is_admitted_and_the_certificate_renewed(
    stack: Secured, tmp_path: Path
) -> None:
    exported = flsim("certs", "--export", str(tmp_path / "ca.pem"), cwd=ROOT, env=stack.environment)
    assert exported.returncode == 0, exported.stderr
    environment = os.environ | {
        "FLSIM_HOME": str(tmp_path / "home"),
        "FLSIM_CA": str(tmp_path / "ca.pem"),
    }
    made = flsim("client", "--make-key", "--name=berlin", cwd=tmp_path, env=environment)
    assert made.returncode == 0, made.stderr
    admitted = flsim(
        "admit", "berlin", str(tmp_path / "berlin.pub"), cwd=ROOT, env=stack.environment
    )
    assert admitted.returncode == 0, admitted.stderr
    renewed = flsim("certs", "--renew", cwd=ROOT, env=stack.environment)
    assert renewed.stdout.startswith("renewed:\n"), renewed.stderr
    said = "the SuperLink's certificate was renewed, and is used from now on"
    wait_for("the new one", lambda: said in stack("logs", "superlink").stdout)
    command = ["client", "--name=berlin", f"--superlink=127.0.0.1:{stack.ports['CLIENTS']}"]
    with (tmp_path / "berlin.log").open("w") as log:
        berlin = subprocess.Popen(
            [sys.executable, "-m", "flsimulation", *command, f"--metrics-port={free_port()}"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        done = stack.run("--set=strategy.rounds=1", "--set=data.examples-per-client=200")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        berlin.terminate()
        berlin.wait()
    partitions = json.loads((stack.runs / ".partitions.json").read_text())
    assert "berlin" in partitions


def test_no_secret_is_in_a_log_an_image_a_run_directory_or_what_docker_shows(
    stack: Secured,
) -> None:
    read = ["cat /flsim/server/server.key", "cat /flsim/keys/*"]
    shown = [
        stack("exec", "--no-TTY", "--user", str(OWNER), "superlink", "sh", "-c", read[0]),
        stack.inside("client", "sh", "-c", read[1]),
    ]
    for done in shown:
        assert "PRIVATE KEY" in done.stdout, done.stderr
    lines = [line for done in shown for line in done.stdout.splitlines()]
    secrets = [line for line in lines if len(line) > 40]
    names = ("certs", "superlink", "client", "prometheus")
    containers: list[Any] = [c for name in names for c in stack.containers(name)]
    texts = [json.dumps(containers), stack("logs").stdout, stack("config").stdout]
    texts += [p.read_bytes().decode(errors="replace") for p in stack.runs.rglob("*") if p.is_file()]
    texts += [stack.inside(name, "env").stdout for name in ("superlink", "client")]
    texts.append(json.dumps(stack.ask("series", **{"match[]": '{__name__=~".+"}'})))
    image = containers[-2]["Image"]
    listed = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint=find", "--user=0", image, "/flsim", "-type", "f"],
        capture_output=True,
        text=True,
    )
    assert (listed.returncode, listed.stdout) == (0, "")
    history = ["docker", "history", "--no-trunc", image]
    texts.append(subprocess.run(history, capture_output=True, text=True).stdout)
    assert [secret for secret in secrets for text in texts if secret in text] == []
    assert [text[:200] for text in texts if "PRIVATE KEY" in text] == []


def test_nobody_but_the_owner_can_read_a_key(stack: Secured) -> None:
    for service, path in (("superlink", "/flsim/server/server.key"), ("client", "/flsim/keys")):
        mode = stack.inside(service, "stat", "-c", "%a", path)
        assert mode.stdout.strip() in ("600", "700")
    unseen = stack.inside("client", "sh", "-c", "ls /flsim/ca /flsim/server; true")
    assert "server.key" not in unseen.stdout
    assert "ca.key" not in unseen.stdout
