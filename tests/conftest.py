"""Small federations for the tests: a data set that a perceptron learns in one epoch."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import flsimulation  # noqa: F401 - before torch: it lets OpenMP's waiting threads sleep
import numpy as np
import pytest
import torch

from flsimulation.clock import VirtualClock
from flsimulation.data import Dataset
from flsimulation.events import Event
from flsimulation.experiment import Experiment

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
"""Figures, waves and processes are those of CPUs, also on a machine with a GPU; tests about a GPU have
stand-ins for it. With CUDA_VISIBLE_DEVICES=0 they use the first one."""
os.environ["FLSIM_HOME"] = tempfile.mkdtemp(prefix="flsim-tests-")
"""Certificates and keys of the tests' networks: the user's own are not touched."""
PATIENCE = 600.0
"""Seconds until a test that waits for what never comes fails: no machine needs as many."""


def wait_for(what: str, condition: Callable[[], Any]) -> Any:
    """What the condition gives as soon as that is true."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen within {PATIENCE:g} s")


shown_after_failure: list[Callable[[], str]] = []
"""Of the programs that tests started: how each has ended, and its last lines."""
_SHOWN = 8  # the latest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[Any]:
    report = yield
    if report.failed:
        texts = (show() for show in shown_after_failure[-_SHOWN:])
        report.sections += [("program", text) for text in texts if text]
    return report


FEATURES = 6
CLASSES = 3


class TickingClock(VirtualClock):
    """A clock that goes on by a second with each look at the time; the first look sees 0."""

    def time(self) -> float:
        now = super().time()
        self.sleep(1.0)
        return now


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs float32 [n, 6] around three far centres, and labels int64 [n]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    centres = 3 * np.eye(FEATURES)[:CLASSES]
    x = centres[labels] + rng.normal(scale=0.5, size=(n, FEATURES))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU for tests of what only a CPU has: processes, threads, measured steps, the Trainer's very bits."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """240 training and 60 test examples of three classes."""
    return Dataset("blobs", *blobs(240, 1), *blobs(60, 2), classes=("a", "b", "c"))


@pytest.fixture(scope="session")
def blobs_npz(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """The same data set as a file."""
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    parts = ("x_train", "y_train", "x_test", "y_test")
    np.savez(path, **{part: getattr(dataset, part).numpy() for part in parts})
    return path


@pytest.fixture(scope="session")
def make_experiment(blobs_npz: Path) -> Callable[..., Experiment]:
    """Build an experiment on the small data set from nested keyword tables."""

    def make(**tables: Any) -> Experiment:
        tree: dict[str, Any] = {
            "name": "test",
            "data": {"dataset": f"file:{blobs_npz}", "clients": 4, "min-examples": 2},
            "model": {"class": "mlp", "args": {"hidden": [8, 8], "learning_rate": 0.01}},
            "strategy": {"rounds": 2},
        }
        for name, value in tables.items():
            tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
        return Experiment.model_validate(tree)

    return make


@pytest.fixture
def experiment_file(tmp_path: Path, blobs_npz: Path) -> Callable[[str], Path]:
    """Write an experiment file on the small data set, followed by more TOML."""

    def write(more: str = "", data: str = "") -> Path:
        path = tmp_path / "experiment.toml"
        path.write_text(
            f'name = "test"\n[data]\ndataset = "file:{blobs_npz}"\nclients = 4\n{data}\n{more}'
        )
        return path

    return write


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Disk:
    """A file system of its own that is soon full."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no space."""
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Make space again."""
        self._ballast.unlink()


@pytest.fixture
def small_disk() -> Callable[[Path], AbstractContextManager[Disk]]:
    """Mount two megabytes on a new folder, inside a block."""

    @contextlib.contextmanager
    def mounted(folder: Path) -> Iterator[Disk]:
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("to mount a file system is not permitted here")
        try:
            yield Disk(folder)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

    return mounted


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As for a GPU: waves one after the other, also on the CPU that stands for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recorder:
    """A sink that keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def own_modules(tmp_path: Path) -> Callable[[str], Path]:
    """Write a Python file of the user's own; give its path."""

    def write(text: str, name: str = "own.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    yield write
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]
