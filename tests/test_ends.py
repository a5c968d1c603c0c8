"""Every end of a run on a network: what it leaves, what it says, and that it can be resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PATIENCE, wait_for
from tests.test_network import Network, Program, flsim, started

from flsimulation import load_experiment, run
from flsimulation.cli.deploy.status import parse_metrics, run_lines
from flsimulation.rundir import RunRecord

pytestmark = pytest.mark.slow

GATED = '''
import os
import time
from pathlib import Path
from flsimulation.models import MLP

class Gated(MLP):
    """Every process's training waits at the gate until it is let through, or all are."""
    passed = False
    def __init__(self, gate="", inputs=6, classes=3):
        super().__init__(inputs=inputs, classes=classes)
        self.gate = gate
    def training_step(self, batch, index):
        if not Gated.passed and len(batch[0]) > 2:  # two are only for practice
            Gated.passed = True
            name = str(os.getpid())
            (Path(self.gate) / f"at-{name}").touch()
            while not any((Path(self.gate) / go).exists() for go in ("open", f"go-{name}")):
                time.sleep(0.02)
        return super().training_step(batch, index)
'''
ROUNDS = 4


class Gate:
    """Where the trainings of a run wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def waiting(self) -> list[Path]:
        names = [path.name.removeprefix("at-") for path in self.folder.glob("at-*")]
        return [go for name in names if not (go := self.folder / f"go-{name}").exists()]

    def stand(self) -> None:
        """Wait until both clients stand at the gate."""
        wait_for("two trainings at the gate", lambda: len(self.waiting()) == 2)

    def let_through(self) -> None:
        """Let both clients through, once."""
        self.stand()
        for go in self.waiting():
            go.touch()

    def open(self) -> None:
        """Let everybody through from now on."""
        (self.folder / "open").touch()


def settings(folder: Path, blobs: Path, gate: Path) -> list[str]:
    return [
        f"data.dataset=file:{blobs}",
        "data.clients=2",
        "data.examples-per-client=0",
        "data.min-examples=2",
        f"model.class={folder / 'gated.py'}:Gated",
        f"model.args={{gate = '{gate}'}}",
        f"strategy.rounds={ROUNDS}",
        "train.device=cpu",
        "train.engine=lightning",
        f"runtime.client-wait={PATIENCE:g}",
    ]


@dataclass
class Stage:
    """A network and what a run that never stops gives on it."""

    network: Network
    blobs: Path
    weights: str

    @property
    def folder(self) -> Path:
        return self.network.folder

    def state(self) -> str:
        """The run's state by the metrics."""
        samples = self.network.superlink.samples()
        states = [
            key.partition("=")[2]
            for key, value in samples.items()
            if key.startswith("fl_run_state,") and value == 1
        ]
        return states[0] if len(states) == 1 else "none"  # read while they were set

    def status(self) -> str:
        """The run's line of ``flsim status``."""
        url = f"http://127.0.0.1:{self.network.superlink.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return (
                run_lines(parse_metrics(answer.read().decode()), 0.0)[0].removeprefix("run").strip()
            )

    def restart(self) -> None:
        self.network.superlink = Program(self.folder, "superlink", *self.network.arguments)
        self.network.ready()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, blobs_npz: Path) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("ends")
    (folder / "runs").mkdir()
    (folder / "gated.py").write_text(GATED)
    gate = Gate(folder / "gate-of-all")
    gate.open()
    whole = load_experiment(None, settings(folder, blobs_npz, gate.folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flsimulation.client.workspace.processes_for", lambda *_: 1)
        weights = run(whole, folder / "whole").weights_sha256
    with started(folder, "a", "b") as network:
        yield Stage(network, blobs_npz, str(weights))


class Run:
    """A run that stands in its third round; one is complete, with its scores."""

    def __init__(self, stage: Stage, name: str, more: tuple[str, ...], out: str | None) -> None:
        self.stage = stage
        self.gate = Gate(stage.folder / f"gate-{name}")
        self.out = out or f"runs/{name}"
        self.run_dir = stage.folder / self.out
        sets = (*settings(stage.folder, stage.blobs, self.gate.folder), *more)
        address = ("--runtime=network", f"--superlink={stage.network.address}")
        self.log = stage.folder / f"driver-{name}.log"
        with self.log.open("w") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "flsimulation", "run", *address, f"--out={self.out}"]
                + [f"--set={item}" for item in sets],
                cwd=stage.folder,
                stdout=log,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def stand_in_round_three(self) -> None:
        self.gate.let_through()
        self.gate.let_through()
        self.gate.stand()
        wait_for("the first round's line", lambda: self.manifest()["rounds"] == 1)
        wait_for("its copy in the terminal", lambda: f"  1/{ROUNDS} " in self.log.read_text())

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.run_dir / "manifest.json").read_text()))

    def process(self) -> int:
        """The process that writes the run directory."""
        inode = str((self.run_dir / ".lock").stat().st_ino)
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        (found,) = {int(lock[4]) for lock in locks if lock[5].rpartition(":")[2] == inode}
        return found

    def said(self) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of the driver."""
        _, err = self.driver.communicate(timeout=PATIENCE)
        return self.driver.returncode, self.log.read_text(), err

    @property
    def command(self) -> str:
        """What resumes it."""
        return f"flsim run --resume {self.out} --superlink {self.stage.network.address}"

    def resumed(self) -> dict[str, Any]:
        """The result of the very command that was told."""
        done = flsim(*self.command.split()[1:], "--json", cwd=self.stage.folder)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@contextmanager
def standing(stage: Stage, name: str, *sets: str, out: str | None = None) -> Iterator[Run]:
    """A run that stands in its third round."""
    run = Run(stage, name, sets, out)
    try:
        run.stand_in_round_three()
        assert run.manifest()["state"] == stage.state() == "running"
        yield run
    finally:
        run.gate.open()
        run.driver.kill()
        run.driver.wait()
        assert run.driver.stderr is not None
        run.driver.stderr.close()


def check_resume(run: Run) -> None:
    result = run.resumed()
    assert (result["state"], result["rounds"]) == ("completed", ROUNDS)
    assert result["weights_sha256"] == run.stage.weights
    lines = RunRecord(run.run_dir).rounds
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    assert run.manifest()["state"] == "completed"


def listener(port: int) -> int:
    """The process that listens at a port."""
    sockets = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    }
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink().name in {f"socket:[{inode}]" for inode in sockets}:
                return int(link.parts[2])
    raise AssertionError(f"nobody listens at {port}")


def check_end(run: Run, state: str, rounds: int) -> None:
    """What manifest, metric and ``flsim status`` say."""
    wait_for("the end", lambda: run.manifest()["state"] != "running")
    assert (run.manifest()["state"], run.manifest()["rounds"]) == (state, rounds)
    wait_for("the metric", lambda: run.stage.state() == state)
    assert run.stage.status().startswith(f"{state}, {rounds} of {ROUNDS} rounds")


def stop(run: Run) -> None:
    """As ``flwr stop`` does, from another terminal."""
    from flsimulation.runtimes.network.flower import flower

    with flower(run.stage.network.address) as command:
        done = subprocess.run(
            [sys.executable, "-m", "flwr.cli.app", "list", "flsim", "--format", "json"],
            env=command._environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        runs = json.loads(done.stdout[done.stdout.find("{") :])["runs"]
        (going,) = [r["run-id"] for r in runs if r["status"] == "running"]
        command.stop(going)


def signal_process(number: signal.Signals) -> Callable[[Run], None]:
    return lambda run: os.kill(run.process(), number)


@pytest.mark.parametrize(
    ("name", "end", "state", "rounds", "cause"),
    [
        ("sigterm", signal_process(signal.SIGTERM), "interrupted", 2, "the run was interrupted: SIGTERM ended it, which its SuperLink sends when it is stopped"),
        ("sigkill", signal_process(signal.SIGKILL), "failed", 1, "the run's process was ended by SIGKILL"),
        ("stopped", stop, "interrupted", 2, "the run was stopped"),
    ],
)  # fmt: skip
def test_an_end_of_the_servers_process(
    stage: Stage, name: str, end: Callable[[Run], None], state: str, rounds: int, cause: str
) -> None:
    with standing(stage, name) as run:
        end(run)
        status, out, err = run.said()
    assert status == 1
    if state == "failed":  # what its parent knows of a process that is gone
        told = re.search(r"failed: 1 of 4 rounds in (\S+) s, .* peak memory (\d+) MiB", out)
        assert told is not None, out
        assert float(told[1]) > 0
        assert int(told[2]) > 200
    why = r"(, (not out of memory as far as the kernel reports|most likely out of memory; [^;]+))?"  # as far as this kernel tells it
    assert re.fullmatch(rf"flsim: {cause}{why}; resume with `{re.escape(run.command)}`\n", err), err
    check_end(run, state, rounds)
    check_resume(run)


def test_ctrl_c_in_the_terminal(stage: Stage) -> None:
    with standing(stage, "ctrl-c") as run:
        run.driver.send_signal(signal.SIGINT)
        status, out, err = run.said()
    assert (status, err) == (130, "")
    assert out.splitlines()[-1] == f"Resume  {run.command}"
    check_resume(run)  # at once: it waits for the end of the first
    assert stage.state() == "completed"


def test_ctrl_c_leaves_the_run_interrupted(stage: Stage) -> None:
    with standing(stage, "ctrl-c-only") as run:
        run.driver.send_signal(signal.SIGINT)
        assert run.said()[0] == 130
    check_end(run, "interrupted", 2)


def test_a_run_goes_on_without_its_terminal(stage: Stage) -> None:
    with standing(stage, "terminal") as run:
        run.driver.kill()
        run.driver.wait()
        assert run.manifest()["state"] == "running"
    check_end(run, "completed", ROUNDS)
    assert run.manifest()["weights-sha256"] == stage.weights


def test_a_round_with_too_few_answers(stage: Stage) -> None:
    with standing(stage, "too-few", "round.min-results=2") as run:
        (go, _) = run.gate.waiting()
        os.kill(int(go.name.removeprefix("go-")), signal.SIGKILL)
        run.gate.open()
        status, _, err = run.said()
    assert status == 1
    assert err.startswith("flsim: round 3: 1 of 2 clients succeeded, 2 needed; client ")
    assert re.search(r"; client \d: the process of its message was ended by SIGKILL", err)
    assert err.endswith(f"; resume with `{run.command}`\n")
    check_end(run, "failed", 2)
    assert run.manifest()["error"] in err
    check_resume(run)


def test_a_client_out_of_memory_is_counted_and_the_run_completes(stage: Stage) -> None:
    with standing(stage, "client") as run:
        (go, _) = run.gate.waiting()
        os.kill(int(go.name.removeprefix("go-")), signal.SIGKILL)
        run.gate.open()
        status, out, err = run.said()
    assert (status, err) == (0, "")
    assert "completed: 4 of 4 rounds" in out
    check_end(run, "completed", ROUNDS)
    lost = [line for line in RunRecord(run.run_dir).clients() if line.get("reason")]
    assert (lost[0]["round"], lost[0]["reason"]) == (2, "lost")  # its evaluation, then its training
    assert (lost[1]["round"], lost[1]["phase"], lost[1]["reason"]) == (3, "train", "lost")


def test_the_superlink_is_stopped_and_started_again(stage: Stage) -> None:
    with standing(stage, "restart") as run:
        stage.network.superlink.end()
        assert (run.manifest()["state"], run.manifest()["rounds"]) == ("interrupted", 2)
        status, _, err = run.said()
        assert status == 1
        cause = "the run was interrupted: SIGTERM ended it, which its SuperLink sends when it is stopped"
        assert err == f"flsim: {cause}; resume with `{run.command}`\n"
        stage.restart()
    check_end(run, "interrupted", 2)
    check_resume(run)


def test_the_superlink_is_killed_and_started_again(stage: Stage) -> None:
    with standing(stage, "killed") as run:
        stage.network.superlink.kill()
        status, _, err = run.said()
        assert status == 1
        cause = "the SuperLink does not answer any more, which ended the run; restart it"
        assert err == f"flsim: {cause}; resume with `{run.command}`\n"
        assert run.manifest()["state"] == "running"
        assert RunRecord(run.run_dir).manifest["state"] == "interrupted"  # readers know
        stage.restart()
    check_end(run, "interrupted", 1)
    assert (
        run.manifest()["error"] == "its SuperLink was killed or restarted, or the machine stopped"
    )
    said = f"flsim: {run.out}: interrupted after round 1; resume it with `flsim run --resume {run.out}`"
    assert said in stage.network.superlink.log.read_text().splitlines()
    check_resume(run)


def test_only_flowers_superlink_is_killed(stage: Stage) -> None:
    with standing(stage, "flower") as run:
        os.kill(listener(stage.network.port), signal.SIGKILL)
        status, _, err = run.said()
    assert status == 1
    assert err.endswith(f"; resume with `{run.command}`\n")
    check_end(run, "interrupted", 2)
    assert run.manifest()["error"] == "its SuperLink ended"
    check_resume(run)


def test_the_disk_is_full(stage: Stage, small_disk: Any) -> None:
    with (
        small_disk(stage.folder / "runs" / "disk") as disk,
        standing(stage, "full", out="runs/disk/full") as run,
    ):
        disk.fill()
        run.gate.open()
        status, _, err = run.said()
        assert status == 1
        said = r"flsim: (runs/disk/full/\S+: cannot be written: the disk is full; free some space there); resume with `(.+)`\n"
        found = re.fullmatch(said, err)
        assert found is not None, err
        assert found[2] == run.command
        check_end(run, "failed", len(RunRecord(run.run_dir).rounds))
        assert run.manifest()["error"] == found[1]
        disk.free()
        check_resume(run)
