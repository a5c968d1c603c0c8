"""A network over TLS whose clients have keys: who is let in, what is refused, and what goes on."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from tests.conftest import wait_for
from tests.test_network import SMALL, Network, Program, flsim, free_port, started

from flsimulation.errors import InputError, RunError
from flsimulation.rundir import RunRecord
from flsimulation.runtimes.network.flower import Flower
from flsimulation.security.certificates import (
    Signed,
    make_ca,
    make_server,
    read_certificate,
    read_key,
)
from flsimulation.security.home import Home, home
from flsimulation.security.issuing import utc_now
from flsimulation.security.register import Register

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "runs").mkdir()
    with started(folder, "a", "b") as network:
        wait_for("two clients", lambda: set(register(network).names().values()) == {"a", "b"})
        yield network


def register(network: Network) -> Register:
    return Register(network.folder / "runs" / ".clients.json")


def one_round(network: Network, *more: str) -> subprocess.CompletedProcess[str]:
    return network.run("--set=strategy.rounds=1", *more)


def log(program: Program) -> str:
    return program.log.read_text()


@contextmanager
def elsewhere(network: Network, name: str, *, admitted: bool = False) -> Iterator[Path]:
    """The folder of another machine, which has the CA's certificate and a key of its own."""
    folder = network.folder / f"machine-{name}"
    place = Home(folder / "home")
    place.ca.parent.mkdir(parents=True)
    shutil.copy(home().ca, place.ca)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLSIM_HOME", str(place.folder))
        made = flsim("client", "--make-key", f"--name={name}", cwd=folder)
        assert made.returncode == 0, made.stderr
        if admitted:
            admit(network, name, folder / f"{name}.pub")
        yield folder


def admit(network: Network, name: str, file: Path) -> subprocess.CompletedProcess[str]:
    runs = network.folder / "runs"
    return flsim("admit", name, str(file), f"--runs={runs}", cwd=network.folder)


def address(network: Network) -> str:
    return f"127.0.0.1:{network.clients_port}"


def test_what_is_not_tls_of_our_ca_is_refused(network: Network, tmp_path: Path) -> None:
    with socket.create_connection(("127.0.0.1", network.clients_port)) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain.recv(100)
    make_ca(utc_now()).write(tmp_path / "ca.pem", tmp_path / "ca.key")
    wrong = os.environ | {"FLSIM_CA": str(tmp_path / "ca.pem")}
    where = f"--superlink={address(network)}"
    for verb in (["client", where], ["runs", f"--superlink={network.address}"]):
        done = flsim(*verb, cwd=tmp_path, env=wrong)
        assert done.returncode == 2
        assert "its certificate is not accepted with the CA" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    off = flsim("runs", f"--superlink={network.address}", env=os.environ | {"FLSIM_INSECURE": "1"})
    assert (off.returncode, "unset FLSIM_INSECURE" in off.stderr) == (2, True)


def test_a_client_of_another_machine_joins_when_admitted_and_leaves_when_revoked(
    network: Network,
) -> None:
    with elsewhere(network, "berlin") as folder:
        berlin = Program(
            folder, "berlin", "client", f"--superlink={address(network)}", "--name=berlin"
        )
        try:
            wait_for("a refusal", lambda: "flsim admit berlin berlin.pub" in log(berlin))
            assert "berlin" not in register(network).names().values()
            shown = admit(network, "berlin", folder / "berlin.pub")
            assert shown.stdout.startswith("berlin is admitted with the key SHA256:")
            done = one_round(network, "--set=data.clients=3")
            assert done.returncode == 0, done.stdout + done.stderr
            partitions = json.loads((network.folder / "runs" / ".partitions.json").read_text())
            assert set(partitions) == {"a", "b", "berlin"}
            refused = log(berlin).count("Failed to activate SuperNode")  # before it was admitted
            ended = flsim("revoke", "berlin", "--runs=runs", cwd=network.folder)
            assert ended.returncode == 0, ended.stderr
            wait_for("its end", lambda: log(berlin).count("Failed to activate SuperNode") > refused)
        finally:
            berlin.kill()
        done = one_round(network, "--set=runtime.client-wait=30", "--set=data.clients=3")
        assert "2 of 3 clients connected within 30 s" in done.stderr
        assert done.stderr.endswith("; missing: berlin\n")
        again = admit(network, "berlin", folder / "berlin.pub")
        assert (again.returncode, "is revoked; make another key" in again.stderr) == (2, True)
        Home(folder / "home").key("berlin").unlink()  # its disk is lost
        made = flsim("client", "--make-key", "--name=berlin", cwd=folder)
        assert made.returncode == 0, made.stderr
        assert admit(network, "berlin", folder / "berlin.pub").returncode == 0
        flsim("revoke", "berlin", "--runs=runs", cwd=network.folder)


def test_nobody_takes_the_name_of_another(network: Network) -> None:
    with elsewhere(network, "a") as folder:
        refused = admit(network, "a", folder / "a.pub")
        assert refused.returncode == 2
        assert refused.stderr.startswith("flsim: a: this name belongs to the key SHA256:")
    with elsewhere(network, "c", admitted=True) as folder:
        shutil.copy(Home(folder / "home").key("c"), Home(folder / "home").key("b"))
        thief = Program(folder, "c", "client", f"--superlink={address(network)}", "--name=b")
        try:  # with the key of c, under the name of b
            done = one_round(network, "--set=data.clients=3")
            assert done.returncode == 0, done.stdout + done.stderr
        finally:
            thief.end()
        said = "client c reports the name b; its key's name counts"
        assert said in log(network.superlink)
        partitions = json.loads((network.folder / "runs" / ".partitions.json").read_text())
        assert {"a", "b", "c"} <= set(partitions)
        flsim("revoke", "c", "--runs=runs", cwd=network.folder)


def test_a_client_that_starts_again_has_the_same_identity(network: Network) -> None:
    before = register(network).names()
    network.clients["a"].end()
    network.join("a")
    done = one_round(network)
    assert done.returncode == 0, done.stdout + done.stderr
    assert register(network).names() == before


def test_a_client_that_was_started_before_its_superlink_is_admitted(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    place = home()
    place.ca.parent.mkdir(parents=True, exist_ok=True)
    if not place.ca.is_file():
        make_ca(utc_now()).write(place.ca, place.ca_key)
    port, clients_port = free_port(), free_port()
    where = f"--superlink=127.0.0.1:{clients_port}"
    early = Program(tmp_path, "early", "client", where, "--name=early")
    try:
        wait_for("its start", lambda: "the client tries again until it does" in log(early))
        ports = (f"--port={port}", f"--clients-port={clients_port}")
        superlink = Program(tmp_path, "superlink", "superlink", *ports)
        try:
            known = Register(tmp_path / "runs" / ".clients.json")
            wait_for("its admission", lambda: "early" in known.names().values())
            sets = (
                "--set=data.clients=1",
                "--set=strategy.rounds=1",
                "--set=data.examples-per-client=50",
            )
            run = ("run", "--runtime=network", f"--superlink=127.0.0.1:{port}", "--json", *sets)
            done = flsim(*run, cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
        finally:
            superlink.end()
    finally:
        early.end()


def test_a_superlink_that_starts_again_knows_its_clients(network: Network) -> None:
    network.superlink.kill()
    network.superlink = Program(network.folder, "superlink", *network.arguments)
    network.ready()
    done = one_round(network)
    assert done.returncode == 0, done.stdout + done.stderr


def test_at_the_clients_address_nothing_is_submitted_listed_or_stopped(
    network: Network, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    command = Flower(address(network), tmp_path / "home")
    command.check()  # it is there
    with pytest.raises(RunError, match="refused the run"):
        command.submit({"name": "x"})
    with pytest.raises(RunError, match="does not list its runs"):
        command.runs()
    assert command.stop("1") is False


def _served(network: Network, port: int) -> x509.Certificate:
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return x509.load_pem_x509_certificate(pem.encode())


def test_an_expired_certificate_is_named_and_a_renewed_one_is_used_at_once(
    network: Network,
) -> None:
    place, ports = home(), (network.port, network.clients_port)
    ca = Signed(read_certificate(place.ca), read_key(place.ca_key))
    old = utc_now() - datetime.timedelta(days=400)
    make_server(ca, ["127.0.0.1"], old).write(place.server, place.server_key)
    expired = read_certificate(place.server)
    wait_for("the expired one", lambda: {_served(network, p) for p in ports} == {expired})
    done = flsim("runs", f"--superlink={network.address}")
    assert (done.returncode, "certificate has expired" in done.stderr) == (2, True)
    done = flsim("certs", "--local")
    assert done.stdout.startswith("renewed:\n"), done.stderr
    renewed = read_certificate(place.server)
    wait_for("the renewed one", lambda: {_served(network, p) for p in ports} == {renewed})
    done = one_round(network)
    assert done.returncode == 0, done.stdout + done.stderr


EVIL = """
from pathlib import Path
Path({ran!r}).touch()
from flsimulation.node import client_app
app = client_app.app
"""


def test_a_client_runs_no_code_that_arrives_and_no_model_that_it_does_not_allow(
    network: Network, tmp_path: Path
) -> None:
    from flsimulation.experiment import flatten, load_experiment
    from flsimulation.runtimes.network.flower import flower, write_app

    experiment = load_experiment(None, [*SMALL, "strategy.rounds=1"])
    app = tmp_path / "app"
    write_app(app, flatten(experiment))
    (app / "evil").mkdir()
    (app / "evil" / "__init__.py").touch()
    (app / "evil" / "client.py").write_text(EVIL.format(ran=str(tmp_path / "ran")))
    project = app / "pyproject.toml"
    text = project.read_text().replace("flsimulation.node.client_app:app", "evil.client:app")
    project.write_text(text)
    with flower(network.address) as command:
        run_id = command.submit_app(app)
        wait_for("its end", lambda: command.state(run_id).startswith("finished"))
        assert command.state(run_id) == "finished:completed"
    assert not (tmp_path / "ran").exists()
    assert list(RunRecord(max((network.folder / "runs").glob("2*"))).rounds)

    model = tmp_path / "own.py"  # not in the folder that these clients allow
    model.write_text("from flsimulation.models import MLP\nclass Own(MLP): pass\n")
    done = one_round(network, f"--set=model.class={model}:Own")
    assert done.returncode == 1
    assert "this client does not allow it (flsim client --allow-model " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_another_one_at_a_client_is_not_trained(network: Network) -> None:
    from flsimulation.experiment import flatten, load_experiment
    from flsimulation.experiment.sources import SOURCES
    from flsimulation.runtimes.network.drive import attach_to_run
    from flsimulation.runtimes.network.flower import flower

    model = network.folder / "own.py"  # in the folder that these clients allow
    model.write_text("from flsimulation.models import MLP\nclass Own(MLP): pass\n")
    assert one_round(network, f"--set=model.class={model}:Own").returncode == 0
    experiment = load_experiment(None, [*SMALL, "strategy.rounds=1", f"model.class={model}:Own"])
    other = {SOURCES: json.dumps({"model.class": "0" * 64})}  # as of a submitter with another file
    with flower(network.address) as command:
        run_id = command.submit({**flatten(experiment), **other})
        with pytest.raises(InputError) as failed:
            attach_to_run(command, run_id)
    assert f"{model} has sha256 " in str(failed.value)
    said = "0000000000000000 on the one that submitted the run; copy it from there"
    assert said in str(failed.value)


def test_no_secret_is_in_a_log_a_run_directory_a_metric_or_an_environment(network: Network) -> None:
    place = home()
    keys = [place.ca_key, place.server_key, *(place.folder / "keys").iterdir()]
    secrets = {line for key in keys for line in key.read_text().splitlines() if len(line) > 40}
    assert len(secrets) > 10
    programs = [network.superlink, *network.clients.values()]
    texts = [log(program) for program in programs]
    texts += [json.dumps(program.samples()) for program in programs]
    files = [path for path in (network.folder / "runs").rglob("*") if path.is_file()]
    texts += [path.read_bytes().decode(errors="replace") for path in files]
    for program in programs:
        for what in ("environ", "cmdline"):
            texts.append(Path(f"/proc/{program.process.pid}/{what}").read_text())
    assert len(texts) > 20
    assert [secret for secret in secrets for text in texts if secret in text] == []
    assert [text for text in texts if "PRIVATE KEY" in text] == []


def test_metrics_are_served_on_loopback_only(network: Network) -> None:
    for program in (network.superlink, network.clients["a"]):
        port = f":{program.metrics_port:04X} "
        lines = [line for line in Path("/proc/net/tcp").read_text().splitlines() if port in line]
        listening = {line.split()[1] for line in lines if line.split()[3] == "0A"}
        assert listening == {f"0100007F:{program.metrics_port:04X}"}


def test_without_tls_a_network_works_and_warns(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLSIM_INSECURE", "1")
        network = Network(tmp_path)
        try:
            network.join("a")
            wait_for("the SuperLink", lambda: Flower(network.address, tmp_path).answers())
            done = one_round(network, "--set=data.clients=1")
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stderr.startswith("flsim: WARNING: FLSIM_INSECURE is set: ")
            for program in (network.superlink, network.clients["a"]):
                assert "flsim: WARNING: FLSIM_INSECURE is set: there is no TLS" in log(program)
        finally:
            for program in (*network.clients.values(), network.superlink):
                program.kill()
