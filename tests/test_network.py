"""A real Flower network on this machine: SuperLink, clients, driver, each a program of its own."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import PATIENCE, shown_after_failure, wait_for

from flsimulation import RunResult, load_experiment, resume, run
from flsimulation.events import RoundFinished, RunFinished, RunStarted
from flsimulation.privacy.accountant import Mechanism, epsilon_of
from flsimulation.rundir import RunRecord

pytestmark = pytest.mark.slow

SMALL = (
    "data.examples-per-client=200",
    "train.device=cpu",
    f"runtime.client-wait={PATIENCE:g}",
)

SLOW = '''
import os
import time
from pathlib import Path
from flsimulation.models import MLP

class Slow(MLP):
    """Sleeps in every training step while a file is there."""
    def __init__(self, gate="", inputs=784, classes=10):
        super().__init__(inputs=inputs, classes=classes)
        self.gate = gate
    def training_step(self, batch, index):
        while len(batch[0]) > 2 and Path(self.gate).exists():  # two are only for practice
            Path(f"{self.gate}.{os.getpid()}").touch()
            time.sleep(0.05)
        return super().training_step(batch, index)
'''


_ports = itertools.count(random.randrange(20_000, 30_000))


def free_port() -> int:
    """A port that no test was given before, below those that Linux gives to any program."""
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def flsim(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flsimulation", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


def processes_of(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


class Program:
    """``flsim superlink`` or ``flsim client``, with its metrics."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.metrics_port = free_port()
        self.log = folder / f"{name}.log"
        command = [sys.executable, "-m", "flsimulation", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, f"--metrics-port={self.metrics_port}"],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        shown_after_failure.append(self.end_of_log)

    def end_of_log(self) -> str:
        """How it ended, if it has, and its last lines."""
        if not self.log.exists():
            return ""
        status, text = self.process.poll(), self.log.read_text(errors="replace")
        return f"{self.log}, exit status {status}:\n{text[-2000:]}\n"

    def samples(self) -> dict[str, float]:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {
            s.name + "".join(f",{k}={v}" for k, v in sorted(s.labels.items())): s.value
            for family in families
            for s in family.samples
        }

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill all its processes at once, as the end of a machine does: none sees another's end."""
        processes = sorted(processes_of(self.process.pid))
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, number)
        self.process.wait()
        wait_for("its end", lambda: not processes_of(self.process.pid))  # a port may be held


class Network:
    """A SuperLink with clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.clients_port = free_port(), free_port()
        self.clients: dict[str, Program] = {}
        self.superlink = Program(folder, "superlink", *self.arguments)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of the SuperLink."""
        return ("superlink", f"--port={self.port}", f"--clients-port={self.clients_port}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def join(self, name: str, *options: str) -> Program:
        where = (f"--superlink=127.0.0.1:{self.clients_port}", f"--allow-models-in={self.folder}")
        arguments = ("client", *where, f"--name={name}", *options)
        self.clients[name] = Program(self.folder, name, *arguments)
        return self.clients[name]

    def ready(self) -> None:
        def answers() -> bool:
            if not (ca := Path(os.environ["FLSIM_HOME"]) / "trust" / "ca.pem").is_file():
                return False
            context = ssl.create_default_context(cafile=ca)
            url = f"https://127.0.0.1:{self.clients_port}/health"
            try:
                with urllib.request.urlopen(url, timeout=2, context=context):
                    return True
            except OSError:
                return False

        wait_for("an answer of the SuperLink", answers)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return flsim("run", *self.options(), *arguments, cwd=self.folder)

    def options(self) -> list[str]:
        sets = [f"--set={item}" for item in SMALL]
        return ["--runtime=network", f"--superlink={self.address}", *sets]

    def end(self) -> None:
        for client in self.clients.values():
            client.end()
        self.superlink.end()


@contextmanager
def started(folder: Path, *names: str) -> Iterator[Network]:
    network = Network(folder)
    try:
        network.ready()
        for name in names:
            network.join(name)
        yield network
    finally:
        for program in (*network.clients.values(), network.superlink):
            if program.process.poll() is None:
                program.kill()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("network")
    (folder / "runs").mkdir()
    (folder / "slow.py").write_text(SLOW)
    with started(folder, "a", "b") as network:
        yield network
        network.end()
        leftover = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True)
        assert leftover.stdout == ""


def last_run(network: Network) -> Path:
    return max((network.folder / "runs").glob("2*"), key=lambda path: path.stat().st_mtime_ns)


def run_one_by_one(out: Path, monkeypatch: pytest.MonkeyPatch) -> RunResult:
    """The small experiment in this process, its clients trained as those of a network are."""
    monkeypatch.setattr("flsimulation.client.workspace.processes_for", lambda *_: 1)
    return run(load_experiment(None, [*SMALL, "train.engine=direct"]), out)


def test_a_run_gives_what_one_process_gives_and_leaves_its_directory(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = network.run("--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["state"], result["rounds"], result["name"]) == ("completed", 3, "default")
    here = run_one_by_one(tmp_path / "here", monkeypatch)
    assert result["weights_sha256"] == here.weights_sha256
    assert result["accuracy"] == here.accuracy
    directory = network.folder / result["run_dir"]
    lines = RunRecord(directory).rounds
    expected = RunRecord(tmp_path / "here").rounds
    for line, other in zip(lines, expected, strict=True):
        for key in ("round", "central", "federated", "train", "cohort", "weights_sha256"):
            assert line[key] == other[key], key
    assert {path.name for path in directory.iterdir()} >= {
        "experiment.toml",
        "manifest.json",
        "rounds.jsonl",
        "clients.jsonl",
        "model.safetensors",
        "report.html",
    }
    assert json.loads((network.folder / "runs" / ".partitions.json").read_text()) in (
        {"a": 0, "b": 1},
        {"a": 1, "b": 0},
    )


def test_run_from_python_goes_where_the_experiment_says(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flsimulation.runtimes.local.open_process", None)  # not here
    where = ["runtime.kind=network", f"runtime.superlink={network.address}"]
    experiment = load_experiment(None, [*SMALL, *where, "strategy.rounds=1"])
    opened: list[Path] = []
    result = run(experiment, sinks=[recorder], opened=opened.append)
    assert (result.state, result.rounds) == ("completed", 1)
    assert opened == [Path(result.run_dir)]
    assert list(tmp_path.iterdir()) == []  # the SuperLink's side writes the run directory
    (began,) = recorder.of(RunStarted)
    assert began.experiment == experiment
    (round,) = recorder.of(RoundFinished)
    assert round.central["accuracy"] == result.accuracy
    (end,) = recorder.of(RunFinished)
    assert end.state == "completed"
    monkeypatch.chdir(network.folder)
    assert RunRecord(result.run_dir).result() == result
    again = resume(result.run_dir)
    assert (again.rounds, again.weights_sha256) == (1, result.weights_sha256)


def test_metrics_count_on_from_run_to_run_and_stay_after_the_last(network: Network) -> None:
    before, done = network.superlink.samples(), network.run("--set=strategy.rounds=2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    after = network.superlink.samples()
    assert after["fl_rounds_total"] == before.get("fl_rounds_total", 0) + 2
    assert after["fl_run_round"] == after["fl_run_rounds"] == 2
    assert after["fl_run_state,state=completed"] == 1
    assert after["fl_global_accuracy,source=central"] == result["accuracy"]
    assert after["fl_clients_connected"] == after["fl_clients_expected"] == 2
    assert after["fl_client_connected,partition=0"] == 1
    assert after["fl_round_started_timestamp_seconds"] == 0
    assert after["fl_container_memory_bytes"] > 10e6
    lines = list(RunRecord(network.folder / result["run_dir"]).clients())
    seen = set()
    for client in network.clients.values():
        samples = client.samples()
        (partition,) = [k[-1] for k in samples if k.startswith("fl_client_info,")]
        seen.add(partition)
        label = f",partition={partition}"
        mine = [line for line in lines if str(line["partition"]) == partition]
        assert samples[f"fl_client_fits_total{label}"] >= 2
        assert samples[f"fl_client_epochs_total{label}"] == samples[f"fl_client_fits_total{label}"]
        assert (
            samples[f"fl_client_examples_total{label}"]
            == 180 * samples[f"fl_client_fits_total{label}"]
        )
        last = [line for line in mine if line["phase"] != "train"][-1]
        assert samples[f"fl_client_loss{label}"] == last["loss"]
        assert samples[f"fl_client_accuracy{label}"] == last["accuracy"]
        trained = [line for line in mine if line["phase"] == "train"][-1]
        assert samples[f"fl_client_train_loss{label}"] == trained["loss"]
        assert samples[f"fl_client_message_bytes_total,direction=up{label}"] > 500_000
    assert seen == {"0", "1"}


def test_verify_finds_that_both_runtimes_agree(network: Network) -> None:
    sets = [f"--set={item}" for item in (*SMALL, "strategy.rounds=2")]
    done = flsim("verify", f"--superlink={network.address}", *sets, cwd=network.folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["1", "same"], ["2", "same"]]
    assert lines[-1].startswith("agree: 2 rounds, ")
    noisy = [*sets, "--set=privacy.mode=local", "--set=privacy.noise-multiplier=1.0"]
    refused = flsim("verify", f"--superlink={network.address}", *noisy, cwd=network.folder)
    assert refused.returncode == 2
    assert refused.stderr.startswith("flsim: privacy.mode is 'local', whose noise follows the syst")
    assert refused.stderr.count("\n") == 1


def test_a_clients_programs_import_no_more_than_they_use(network: Network) -> None:
    """Most of SciPy, matplotlib and what is for ``torch.compile`` were a third of a client's memory."""
    done = network.run(*(f"--set={item}" for item in (*SMALL, "strategy.rounds=1")))
    assert done.returncode == 0, done.stderr
    client = next(iter(network.clients.values()))
    mapped = []
    for process in processes_of(client.process.pid):
        with suppress(OSError):  # a message's process may end
            mapped.append(Path(f"/proc/{process}/maps").read_text())
    assert any("/torch/lib/libtorch_cpu.so" in maps for maps in mapped)  # the search works
    for name in ("/scipy/signal/", "/scipy/special/", "/matplotlib/", "/kiwisolver/"):
        assert not [maps for maps in mapped if name in maps], name


def test_transforms_draw_the_same_on_a_network_as_in_one_process(network: Network) -> None:
    (network.folder / "noise.py").write_text(
        "import torch\n\ndef train(x, generator):\n"
        "    return x + torch.randn(x.shape, generator=generator) * torch.rand(())\n"
    )
    sets = [f"--set={item}" for item in (*SMALL, "strategy.rounds=1")]
    sets += ["--set=data.transform=noise.py:train", "--set=train.engine=lightning"]
    done = flsim("verify", f"--superlink={network.address}", *sets, cwd=network.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("agree: 1 rounds, ")


def test_people_see_the_same_lines_as_in_one_process(network: Network) -> None:
    done = network.run("--set=strategy.rounds=1")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("  waiting for ")]
    assert lines[0].startswith("default: fedavg, 2 clients, 400 examples of mnist (iid), mlp")
    assert any(line.split()[:1] == ["1/1"] for line in lines)
    assert any(line.startswith("completed: 1 of 1 rounds in ") for line in lines)
    assert lines[-1] == f"Report  {last_run(network).relative_to(network.folder)}/report.html"
    assert "INFO" not in done.stdout


@pytest.mark.parametrize("engine", ["auto", "stacked"])
def test_the_manifest_has_the_engine_that_the_clients_chose(network: Network, engine: str) -> None:
    done = network.run("--set=strategy.rounds=1", f"--set=train.engine={engine}")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((last_run(network) / "manifest.json").read_text())
    chosen = {"auto": "direct", "stacked": "stacked"}[engine]
    assert (manifest["engine"], manifest["not-stacked"]) == (chosen, None)


def test_too_few_clients_is_one_line(network: Network) -> None:
    done = network.run("--set=data.clients=3", "--set=runtime.client-wait=1")
    assert done.returncode == 1
    found = re.fullmatch(
        r"flsim: ([012]) of 3 clients connected within 1 s; start more clients, lower data.clients, "
        r"or raise runtime.client-wait(; missing: (a, b|b, a|a|b))?\n",
        done.stderr,
    )
    assert found is not None
    names = (found[3] or "").split(", ") if found[2] else []
    assert len(names) == 2 - int(found[1])  # of the third one nothing is known


def test_whom_a_run_waits_for_is_said_before_it_is_given_up(network: Network) -> None:
    with driven(network, "--set=data.clients=3") as (driver, _):
        assert driver.stdout is not None
        said = f"  clients: 2 of 3 connected, waiting for the others for up to {PATIENCE:g} s\n"
        assert said in driver.stdout  # as lines, until it comes
        driver.send_signal(signal.SIGINT)
        _, err = driver.communicate(timeout=PATIENCE)
        assert (driver.returncode, err) == (130, "")
    wait_for(
        "the end of the run",
        lambda: network.superlink.samples()["fl_run_state,state=running"] == 0,
    )


def test_what_the_server_cannot_load_is_bad_input(network: Network) -> None:
    done = network.run("--set=data.dataset=file:/not/there")
    assert done.returncode == 2
    assert done.stderr.startswith("flsim: ")
    assert "/not/there" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_where_no_superlink_answers_is_bad_input(tmp_path: Path) -> None:
    port = free_port()
    done = flsim("run", "--runtime=network", f"--superlink=127.0.0.1:{port}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"flsim: runtime.superlink 127.0.0.1:{port}: no SuperLink answers there"
    )
    assert "--superlink" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_taken_metrics_port_is_one_line(network: Network, tmp_path: Path) -> None:
    taken = str(network.superlink.metrics_port)
    ports = f"--port={free_port()}", f"--clients-port={free_port()}"
    for verb in (["client", f"--superlink=127.0.0.1:{free_port()}"], ["superlink", *ports]):
        done = flsim(*verb, "--metrics-port", taken, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"flsim: --metrics-port {taken}: cannot listen on ")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["client", "--superlink=foo"], "--superlink foo: write it as host:port"),
        (["client", '--name=a"b'], '--name a"b: use letters, digits'),
    ],
)
def test_a_client_that_cannot_work_does_not_start(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = flsim(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"flsim: {said}")
    assert len(done.stderr.splitlines()) == 1


def test_a_taken_port_of_the_superlink_is_one_line(network: Network, tmp_path: Path) -> None:
    done = flsim("superlink", f"--port={network.port}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"flsim: --port {network.port}: cannot listen on 127.0.0.1:")


def test_a_second_run_at_the_same_time_is_refused(network: Network) -> None:
    with driven(network) as (driver, gate):
        at_the_gate(gate, "a")
        second = network.run("--set=strategy.rounds=1")
        assert second.returncode == 1
        assert second.stderr == (
            "flsim: another run is in progress here; flsim attach follows it, flsim stop ends it\n"
        )
        gate.unlink()
        _, err = driver.communicate(timeout=PATIENCE)
        assert driver.returncode == 0, err


@contextmanager
def driven(network: Network, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run of a model that stands still in training while the file is there."""
    gate = network.folder / "gate"
    for mark in network.folder.glob("gate*"):
        mark.unlink()
    gate.touch()
    command = [sys.executable, "-m", "flsimulation", "run", *network.options(), *arguments]
    model = [
        f"--set=model.class={network.folder / 'slow.py'}:Slow",
        f"--set=model.args={{gate = '{gate}'}}",
    ]
    with subprocess.Popen(
        [*command, *model],
        cwd=network.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as driver:
        try:
            yield driver, gate
        finally:
            gate.unlink(missing_ok=True)
            driver.kill()


def at_the_gate(gate: Path, name: str) -> int:
    """The process that trains for a client: its command line names the client."""

    def found() -> int | None:
        for mark in gate.parent.glob(f"{gate.name}.*"):
            with suppress(OSError):  # it has ended
                line = Path(f"/proc/{mark.suffix[1:]}/cmdline").read_bytes()
                if f'name="{name}"'.encode() in line:
                    return int(mark.suffix[1:])
        return None

    return int(wait_for(f"a training of client {name}", found))


def round_goes_on(network: Network) -> bool:
    samples = network.superlink.samples()
    return samples.get("fl_round_started_timestamp_seconds", 0) > 0


def test_ctrl_c_stops_the_run_and_leaves_the_network_in_order(network: Network) -> None:
    with driven(network) as (driver, gate):
        wait_for("a round", lambda: round_goes_on(network))
        driver.send_signal(signal.SIGINT)
        _, err = driver.communicate(timeout=PATIENCE)
        gate.unlink()
        assert driver.returncode == 130, err
        assert "Traceback" not in err
    wait_for(
        "the end of the run",
        lambda: network.superlink.samples()["fl_run_state,state=running"] == 0,
    )
    done = network.run("--set=strategy.rounds=1", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unfinished_run_goes_on_to_the_same_result(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_one_by_one(tmp_path / "whole", monkeypatch)
    first = network.run("--set=strategy.rounds=2", "--out=runs/part", "--json")
    assert json.loads(first.stdout)["run_dir"] == "runs/part"
    toml = network.folder / "runs" / "part" / "experiment.toml"
    toml.write_text(toml.read_text().replace("rounds = 2", "rounds = 3"))
    where = (f"--superlink={network.address}", "--runtime=network")
    done = flsim("run", "--resume=runs/part", *where, "--json", cwd=network.folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["state"], result["rounds"]) == ("completed", 3)
    assert result["weights_sha256"] == whole.weights_sha256


def test_a_killed_message_is_counted_as_lost_and_the_client_is_used_again(
    network: Network,
) -> None:
    with driven(network, "--set=strategy.rounds=3") as (driver, gate):
        at_the_gate(gate, "a")
        os.kill(at_the_gate(gate, "b"), signal.SIGKILL)
        wait_for(
            "the loss",
            lambda: network.superlink.samples()["fl_client_failures_total,reason=lost"] > 0,
        )
        gate.unlink()
        _, err = driver.communicate(timeout=PATIENCE)
        assert driver.returncode == 0, err
    lines = RunRecord(last_run(network)).rounds
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert lines[0]["failures"] == {"lost": 1}
    assert lines[0]["cohort"] == [0, 1]
    assert lines[-1]["failures"] == {}
    assert lines[-1]["cohort"] == [0, 1]  # it is back
    crashes = [
        value
        for name, value in network.clients["b"].samples().items()
        if name.startswith("fl_client_crashes_total")
    ]
    assert crashes == [1]
    assert "a message's process was ended by SIGKILL" in network.clients["b"].log.read_text()


def test_a_client_that_is_killed_whole_comes_back_with_its_partition(network: Network) -> None:
    partitions = json.loads((network.folder / "runs" / ".partitions.json").read_text())
    network.clients["a"].kill()
    network.join("a")
    done = network.run("--set=strategy.rounds=1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads((network.folder / "runs" / ".partitions.json").read_text()) == partitions
    info = f"fl_client_info,name=a,partition={partitions['a']}"
    assert network.clients["a"].samples()[info] == 1


def test_a_client_whose_own_port_was_taken_takes_another(network: Network) -> None:
    client = network.clients["b"]

    def starts() -> list[tuple[str, str]]:
        """Process and port of each SuperNode that it has started."""
        text = r"Started server process \[(\d+)\].*?running on http://127\.0\.0\.1:(\d+)"
        return re.findall(text, client.log.read_text(), re.DOTALL)

    def takes(port: str) -> bool:
        with suppress(OSError):
            other.bind(("127.0.0.1", int(port)))
            other.listen()
            return True
        return False

    (*before, (process, port)) = starts()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(int(process), signal.SIGKILL)
        wait_for("its port", lambda: takes(port))
        wait_for("its return", lambda: len(starts()) > len(before) + 1)
        done = network.run("--set=strategy.rounds=1")
        assert done.returncode == 0, done.stderr
    assert port not in [p for _, p in starts()[len(before) + 1 :]]


def test_a_spare_takes_over_for_a_client_that_is_gone(network: Network) -> None:
    spare = network.join("spare")
    wait_for("metrics", lambda: spare.log.read_text().count("SuperNode ID"))
    network.clients.pop("a").end()
    done = network.run("--set=strategy.rounds=1", "--json")
    assert done.returncode == 0, done.stderr
    info = [key for key in spare.samples() if key.startswith("fl_client_info")]
    partitions = json.loads((network.folder / "runs" / ".partitions.json").read_text())
    assert info == [f"fl_client_info,name=spare,partition={partitions['spare']}"]
    assert set(partitions.values()) == {0, 1}


def test_the_superlink_may_be_started_anew_between_runs(network: Network) -> None:
    network.superlink.end()
    network.superlink = Program(network.folder, "superlink", *network.arguments)
    network.ready()
    done = network.run("--set=strategy.rounds=1", "--json")
    assert done.returncode == 0, done.stderr
    assert network.superlink.samples()["fl_rounds_total"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["central", "local"])
def test_clients_of_a_network_are_hidden_by_noise_that_no_seed_gives_again(
    network: Network, mode: str
) -> None:
    sets = [
        f"--set=privacy.{item}"
        for item in (f"mode={mode}", "noise-multiplier=0.5", "delta=0.01", "clip=0.5")
    ]
    first, second = (network.run("--json", *sets) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    results = [json.loads(done.stdout) for done in (first, second)]
    assert results[0]["weights_sha256"] != results[1]["weights_sha256"]
    record = RunRecord(network.folder / results[0]["run_dir"])
    # of a client's own data all may change, by two norms; one client more adds at most one
    times = 0.5 if mode == "central" else 0.25
    expected = [epsilon_of(Mechanism(times, 1.0), number, 0.01) for number in (1, 2, 3)]
    assert [line["privacy"]["epsilon"] for line in record.rounds] == pytest.approx(expected)
    told = "privacy: noise and cohorts follow the system's entropy, not the run's seed"
    assert told in record.manifest["data"]["notes"]
    if mode == "central":  # each client said whether it had to clip its update
        lines = (record.path / "clients.jsonl").read_text().splitlines()
        trained = [line for line in map(json.loads, lines) if line["phase"] == "train"]
        assert {line["unclipped"] for line in trained} <= {0.0, 1.0}


def test_clients_of_a_network_train_by_dp_sgd_with_samples_that_no_seed_gives_again(
    network: Network,
) -> None:
    sets = [
        *("--set=privacy.mode=example", "--set=privacy.noise-multiplier=0.7"),
        *("--set=privacy.delta=0.001", "--set=train.batch-size=18"),
    ]
    first, second = (network.run("--json", *sets) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    results = [json.loads(done.stdout) for done in (first, second)]
    assert results[0]["weights_sha256"] != results[1]["weights_sha256"]
    record = RunRecord(network.folder / results[0]["run_dir"])
    mechanism = Mechanism(0.7, 18 / 180)  # of 200 examples a tenth is held out
    expected = [epsilon_of(mechanism, 10 * number, 0.001) for number in (1, 2, 3)]
    assert [line["privacy"]["epsilon"] for line in record.rounds] == pytest.approx(expected)
    notes = " ".join(record.manifest["data"]["notes"])
    assert "each example is hidden from all who see a client's update" in notes
    assert "follow the run's seed" not in notes
