"""Secure aggregation on a network: what the server's processes hold, and a client that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.conftest import wait_for
from tests.test_network import SMALL, Network, Program, processes_of, started

from flsimulation import load_experiment, run
from flsimulation.privacy.masks import Keys, derived
from flsimulation.rundir import RunRecord

pytestmark = pytest.mark.slow

PLANTING = '''
import gc
import os
import time
from pathlib import Path

import numpy as np
import torch
from flsimulation.models import MLP

class Planting(MLP):
    """Plants numbers in its update, and writes down them and its secret; the last of four waits."""
    def __init__(self, folder="", inputs=784, classes=10):
        super().__init__(inputs=inputs, classes=classes)
        self.folder = Path(folder)
        self.planted = torch.nn.Parameter(torch.zeros(64))
    def training_step(self, batch, index):
        if len(batch[0]) > 2 and index == 0:  # two are only for practice
            self.plant()
        return super().training_step(batch, index)
    def plant(self):
        for turn in range(4):
            try:
                (self.folder / f"turn-{turn}").open("x").close()
                break
            except FileExistsError:
                pass
        numbers = np.random.default_rng().uniform(0.5, 1.0, 64).astype(np.float32)
        for own in gc.get_objects():
            if type(own).__name__ == "KeptVault" and own._state:
                (kept,) = own._state.values()
                (self.folder / f"secret-{turn}").write_bytes(kept["secret"])
        np.save(self.folder / f"planted-{turn}.npy", numbers)
        with torch.no_grad():
            self.planted.copy_(torch.from_numpy(numbers))
        while turn == 3 and (self.folder / "gate").exists():
            (self.folder / "waits").write_text(str(os.getpid()))
            time.sleep(0.05)
'''


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("secure")
    (folder / "runs").mkdir()
    (folder / "planting.py").write_text(PLANTING)
    with started(folder, "a", "b", "c", "d") as network:
        yield network
        network.end()


def memory_of(process: int) -> Iterator[bytes]:
    """The readable memory of a process, region by region."""
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if line.split()[1][:2] != "rw":
            continue
        with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
            try:
                memory.seek(first)
                yield memory.read(last - first)
            except OSError:
                continue


def holders(network: Network, wanted: dict[str, bytes]) -> set[str]:
    """Names of what is in the memory of the SuperLink's processes, one of which runs the ServerApp."""
    processes = processes_of(network.superlink.process.pid)
    assert len(processes) > 1
    found = set()
    for process in processes:
        for region in memory_of(process):
            found |= {name for name, content in wanted.items() if content in region}
    return found


def begin(network: Network, out: str, *sets: str) -> subprocess.Popen[str]:
    """Start a run, and wait until three clients have replied and the last one waits."""
    for path in (*network.folder.glob("turn-*"), *network.folder.glob("waits")):
        path.unlink()
    (network.folder / "gate").touch()
    spec = network.folder / "experiment.toml"
    spec.write_text(
        f'[model]\nclass = "planting.py:Planting"\nargs = {{folder = "{network.folder}"}}\n'
        f"[data]\nclients = 4\n[strategy]\nrounds = 1\n"
    )
    given = [f"--set={item}" for item in (*sets, "train.engine=direct", "runtime.return-wait=20")]
    command = [sys.executable, "-m", "flsimulation", "run", str(spec), *network.options(), *given]
    running = subprocess.Popen(
        [*command, f"--out=runs/{out}", "--json"],
        cwd=network.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def have_replied() -> bool:
        lines = network.folder / "runs" / out / "clients.jsonl"
        if running.poll() is not None:
            raise AssertionError(running.communicate())
        return lines.is_file() and lines.read_text().count('"phase": "train"') == 3

    wait_for("three masked updates", have_replied)
    wait_for("the last client", (network.folder / "waits").exists)
    return running


def waiting(network: Network) -> Program:
    """The client that has not sent its masked update yet."""
    text = wait_for(
        "its number", (network.folder / "waits").read_text
    )  # it is written again and again
    return next(c for c in network.clients.values() if int(text) in processes_of(c.process.pid))


def planted(network: Network) -> dict[str, bytes]:
    """The numbers of the three updates that have arrived, as float32 and as float64."""
    numbers = [np.load(network.folder / f"planted-{turn}.npy") for turn in range(3)]
    return {
        f"update {turn} {kind.__name__}": own.astype(kind).tobytes()[:128]
        for turn, own in enumerate(numbers)
        for kind in (np.float32, np.float64)
    }


def ended(running: subprocess.Popen[str], status: int = 0) -> dict[str, Any]:
    out, err = running.communicate(timeout=600)
    assert running.returncode == status, err
    result: dict[str, Any] = json.loads(out)
    return result


def test_the_servers_memory_and_logs_hold_no_update_and_no_key(network: Network) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("the memory of a process cannot be read here")
    running = begin(network, "plain")
    found = holders(network, planted(network))
    assert {"update 0 float32", "update 1 float32", "update 2 float32"} <= found  # the search works
    (network.folder / "gate").unlink()
    ended(running)

    running = begin(
        network, "secure", "privacy.secure-aggregation=true", "privacy.assumed-dropped=0.25"
    )
    secrets = [(network.folder / f"secret-{turn}").read_bytes() for turn in range(4)]
    wanted, public = planted(network), dict[str, bytes]()
    for turn, secret in enumerate(secrets):
        keys = Keys(secret)
        public[f"public {turn}"] = keys.public.masking
        wanted |= {
            f"secret {turn}": secret,
            f"own seed {turn}": keys.own_seed,
            f"mask seed {turn}": keys.mask_seed,
            f"sealing key {turn}": derived(secret, "sealing"),
        }
    assert holders(network, public) == public.keys()  # the search works
    assert holders(network, wanted) == set()

    # the client that did not send its masked update yet is killed: the others' mean is found without it
    killed = waiting(network)
    killed.kill()
    (network.folder / "gate").unlink()
    result = ended(running, 3)  # degraded: a client never succeeded
    directory = network.folder / "runs" / "secure"
    (line,) = RunRecord(directory).rounds
    sizes = {"neighbours": 3, "threshold": 2}
    assert line["secure"] == {**sizes, "keys": 0, "shares": 0, "train": 1, "unmask": 0}
    assert line["failures"]["lost"] >= 1
    assert result["rounds"] == 1
    numbers = [np.load(network.folder / f"planted-{turn}.npy") for turn in range(3)]
    model = load_file(directory / "model.safetensors")["planted"]
    np.testing.assert_allclose(model, np.mean(numbers, 0), atol=2e-6)

    logs = [path.read_bytes() for path in network.folder.rglob("*.log")]
    files = [
        path.read_bytes()
        for path in (network.folder / "runs" / "secure").rglob("*")
        if path.is_file()
    ]
    forms = [form for own in wanted.values() for form in (own, own.hex().encode())]
    assert len(logs) >= 5
    assert not [form for form in forms for text in (*logs, *files) if form in text]


def test_a_network_gives_what_plain_averaging_gives_within_the_rounding(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next((n for n, c in network.clients.items() if c.process.poll() is not None), None)
    if name is not None:
        network.join(name)
    monkeypatch.setattr("flsimulation.client.workspace.processes_for", lambda *_: 1)
    for rounds in (1, 3):
        sets = ["data.clients=4", "train.engine=direct", f"strategy.rounds={rounds}"]
        secure = [*sets, "privacy.secure-aggregation=true"]
        done = network.run(*(f"--set={item}" for item in secure), "--json")
        assert done.returncode == 0, done.stderr
        here = tmp_path / f"here-{rounds}"
        run(load_experiment(None, [*SMALL, *sets]), here)
        there = RunRecord(network.folder / json.loads(done.stdout)["run_dir"])
        ours, plain = (load_file(path / "model.safetensors") for path in (there.path, here))
        gaps = np.concatenate([np.abs(ours[key] - plain[key]).ravel() for key in plain])
        # of later rounds Adam's first steps enlarge some: of gradients near 0 they take the sign
        assert gaps.max() < (1e-7 if rounds == 1 else 2e-4)
        assert np.median(gaps) < 1e-6
        assert [line["secure"]["neighbours"] for line in there.rounds] == [3] * rounds
    log = (network.folder / "superlink.log").read_text()
    assert "Traceback" not in log, log[max(0, log.find("Traceback") - 1000) :][:4000]
