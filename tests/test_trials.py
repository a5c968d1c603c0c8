"""Sites on machines of their own, as docs/sites.md describes it; a machine is a network namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.conftest import PATIENCE, wait_for
from tests.test_network import processes_of

pytestmark = pytest.mark.slow

SITES = Path(__file__).parent.parent / "experiments" / "sites"
HOSTS = {"server": "10.77.0.1", "sites": "10.77.0.2", "proxy": "10.77.0.3"}

PROXY = """
import contextlib, socket, sys, threading
def pump(one, other):
    with contextlib.suppress(OSError):
        while part := one.recv(65536):
            other.sendall(part)
    for end in (one, other):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
listener = socket.create_server(("0.0.0.0", 8081))
print("listens", flush=True)
while True:
    one = listener.accept()[0]
    try:
        other = socket.create_connection((sys.argv[1], 8081))
    except OSError:  # the server starts again: the client comes back
        one.close()
        continue
    for pair in ((one, other), (other, one)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""
"""Passes TCP through."""

SCAN = """
import socket, sys
def is_open(port):
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((sys.argv[1], port)) == 0
print([port for port in range(1, 65536) if is_open(port)])
"""


class Machines:
    """Three machines on one bridge, each with a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, list[subprocess.Popen[bytes]]()
        for name in (*HOSTS, "berlin", "lodz"):
            (folder / name).mkdir()

    def build(self) -> None:
        for name, address in HOSTS.items():
            here, port = self.name(name), f"port{HOSTS[name][-1]}"
            ip("netns", "add", here)
            ip("-n", here, "link", "set", "lo", "up")
            if name == "server":
                ip("-n", here, "link", "add", "bridge0", "type", "bridge")
                ip("-n", here, "addr", "add", f"{address}/24", "dev", "bridge0")
                ip("-n", here, "link", "set", "bridge0", "up")
                continue
            server = self.name("server")
            ip("-n", here, *f"link add veth0 type veth peer name {port} netns {server}".split())
            ip("-n", here, "addr", "add", f"{address}/24", "dev", "veth0")
            ip("-n", here, "link", "set", "veth0", "up")
            ip("-n", server, "link", "set", port, "master", "bridge0", "up")

    def end(self) -> None:
        for program in self.programs:
            for process in processes_of(program.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, 9)
            program.wait()
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", self.name(name)], capture_output=True)

    def name(self, machine: str) -> str:
        return f"fl{os.getpid()}-{machine}"

    def command(self, machine: str, folder: str, *words: str, read_only: bool = False) -> list[str]:
        place = self.folder / folder
        lock = f"mount --bind {place} {place} && mount -o remount,bind,ro {place} && cd {place} && "
        shell = ["sh", "-c", f'{lock * read_only}exec "$@"', "sh"]
        inside = [*shell, sys.executable, *words]
        home = f"FLSIM_HOME={place / 'home'}"
        ca = [f"FLSIM_CA={place / 'ca.pem'}"] * (machine == "sites")
        return ["ip", "netns", "exec", self.name(machine), "env", home, *ca, *inside]

    def ask(self, machine: str, folder: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(machine, folder, *words),
            cwd=self.folder / folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def flsim(self, machine: str, folder: str, *words: str) -> str:
        done = self.ask(machine, folder, "-m", "flsimulation", *words)
        logs = [f"{log.name}: {log.read_text()}" for log in self.folder.glob("*.log")]
        assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])
        return done.stdout

    def start(self, machine: str, folder: str, *words: str, read_only: bool = False) -> Path:
        log = self.folder / f"{folder}.log"
        with log.open("wb") as out:
            program = subprocess.Popen(
                self.command(machine, folder, *words, read_only=read_only),
                cwd=self.folder / folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self.programs.append(program)
        return log


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode and words[:2] == ("netns", "add"):
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    machines = Machines(tmp_path)
    try:
        machines.build()
        yield machines
    finally:
        machines.end()


def client(site: str, address: str, port: int) -> tuple[str, ...]:
    return (
        *("-m", "flsimulation", "client", f"--superlink={address}:8081", f"--site={site}"),
        *(
            f"--data={site}.csv",
            "--allow-model=readmission.py:Readmission",
            f"--metrics-port={port}",
        ),
    )


def test_two_sites_train_with_a_server_one_through_a_proxy_and_from_a_read_only_disk(
    machines: Machines,
) -> None:
    server = machines.folder / "server"
    (server / "runs").mkdir()
    for name in ("hospitals.toml", "readmission.py"):
        shutil.copy(SITES / name, server)
    machines.flsim("server", "server", "certs", "--local", f"--name={HOSTS['server']}")
    machines.flsim("server", "server", "certs", "--local", "--export=ca.pem")
    for site in ("berlin", "lodz"):
        own = machines.folder / site
        for file in (server / "ca.pem", SITES / "readmission.py", SITES / f"hospitals/{site}.csv"):
            shutil.copy(file, own)
        machines.flsim("sites", site, "client", "--make-key", f"--name={site}")
        machines.flsim("server", "server", "admit", site, str(own / f"{site}.pub"))
    log = machines.start(
        "server", "server", "-m", "flsimulation", "superlink", "--clients-host=0.0.0.0"
    )
    wait_for("the SuperLink", lambda: "running on https://0.0.0.0:8081" in log.read_text())
    assert machines.ask("sites", "berlin", "-c", SCAN, HOSTS["server"]).stdout == "[8081]\n"

    proxy = machines.start("proxy", "proxy", "-c", PROXY, HOSTS["server"])
    wait_for("the proxy", lambda: "listens" in proxy.read_text())
    refused = machines.ask("sites", "berlin", *client("berlin", HOSTS["proxy"], 8001))
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "IP address mismatch" in refused.stderr
    assert "on the server's machine, flsim certs --name 10.77.0.3 adds this name" in refused.stderr
    machines.flsim("server", "server", "certs", "--local", f"--name={HOSTS['proxy']}")
    wait_for("the new certificate", lambda: "is used from now on" in log.read_text())
    berlin = client("berlin", HOSTS["proxy"], 8001)
    machines.start("sites", "berlin", *berlin, read_only=True)
    machines.start("sites", "lodz", *client("lodz", HOSTS["server"], 8002))
    run = ("run", "hospitals.toml", "--runtime=network", "--set=strategy.rounds=2", "--json")
    wait = f"--set=runtime.client-wait={PATIENCE / 2:g}"
    said = machines.flsim("server", "server", *run, wait, '--set=data.sites=["berlin","lodz"]')
    assert '"state": "completed"' in said
    assert '"rounds": 2' in said
