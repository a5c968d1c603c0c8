"""Every experiment that ships runs, on real data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flsimulation import load_experiment, run

pytestmark = pytest.mark.seconds

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").glob("*.toml"))


def test_six_kinds_of_experiment_ship() -> None:
    assert [f.stem for f in FILES] == [
        "clients100",
        "default",
        "noniid",
        "own_model",
        "pathological",
        "privacy",
    ]


def test_the_default_experiment_learns_mnist_in_three_rounds(tmp_path: Path, recorder: Any) -> None:
    result = run(load_experiment(), tmp_path / "run", [recorder])
    assert result.accuracy is not None
    assert result.accuracy >= 0.92
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [sum(counts) for counts in manifest["data"]["histogram"].values()] == [5000, 5000]
    assert manifest["model"]["parameters"] == 784 * 128 + 128 + 128 * 256 + 256 + 256 * 10 + 10


def test_the_default_experiment_stays_within_its_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flsimulation", "run", "--json", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert 200 * 2**20 < json.loads(done.stdout)["peak_memory_bytes"] < 1.5 * 2**30


@pytest.mark.parametrize(
    ("name", "rounds", "clients", "cohort", "least"),
    [
        ("noniid", 2, 10, 10, 0.4),
        ("pathological", 2, 10, 10, 0.25),
        ("clients100", 2, 100, 10, 0.7),
        ("own_model", 3, 4, 4, 0.35),
    ],
)
def test_the_other_experiments_run(
    tmp_path: Path, name: str, rounds: int, clients: int, cohort: int, least: float
) -> None:
    file = ROOT / "experiments" / f"{name}.toml"
    result = run(load_experiment(file, [f"strategy.rounds={rounds}"]), tmp_path / "run")
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (result.rounds, len(last["cohort"]), last["failures"]) == (rounds, cohort, {})
    assert result.accuracy is not None
    assert result.accuracy >= least
    assert result.loss == result.loss  # a number: fedavgm must not make a variance negative
    histogram = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["histogram"]
    assert len(histogram) == clients
    if name == "pathological":
        assert {sum(count > 0 for count in counts) for counts in histogram.values()} == {2}


def test_the_private_experiment_learns_within_its_epsilon(tmp_path: Path) -> None:
    result = run(load_experiment(ROOT / "experiments" / "privacy.toml"), tmp_path / "run")
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert (result.state, result.rounds) == ("completed", 10)
    assert 7.5 < json.loads(lines[-1])["privacy"]["epsilon"] <= 8.0
    assert result.accuracy is not None
    assert result.accuracy > 0.5
