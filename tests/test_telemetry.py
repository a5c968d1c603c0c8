"""The metrics, the exporter and the checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from prometheus_client.parser import text_string_to_metric_families

from flsimulation import run
from flsimulation.atomic import write_atomic
from flsimulation.errors import InputError
from flsimulation.events import (
    Checkpoint,
    ClientReplied,
    PhaseStarted,
    RoundFinished,
    RunFinished,
)
from flsimulation.telemetry.checkpoint import read_checkpoint, write_checkpoint
from flsimulation.telemetry.exporter import served
from flsimulation.telemetry.jsonlines import JsonLines, read_lines
from flsimulation.telemetry.metrics import PrometheusMetrics
from flsimulation.telemetry.table import METRICS


def metrics_of_a_run(experiment: Any, path: Path, *sinks: Any) -> Any:
    metrics = PrometheusMetrics(experiment.data.clients)
    run(experiment, path, [metrics, *sinks])
    return metrics.registry.get_sample_value


def test_the_metrics_of_a_run_equal_its_run_directory(make_experiment: Any, tmp_path: Path) -> None:
    value = metrics_of_a_run(make_experiment(train={"epochs": 2}), tmp_path / "run")
    rounds = read_lines(tmp_path / "run" / "rounds.jsonl")
    assert value("fl_rounds_total") == 2
    assert value("fl_round_duration_seconds_count") == 2
    total = sum(line["seconds"]["total"] for line in rounds)
    assert value("fl_round_duration_seconds_sum") == pytest.approx(total)
    for phase in ("train", "aggregate", "evaluate"):
        label = {"phase": phase}
        assert value("fl_round_phase_duration_seconds_sum", label) == pytest.approx(
            sum(line["seconds"][phase] for line in rounds)
        )
    for source in ("central", "federated"):
        for name in ("loss", "accuracy"):
            assert value(f"fl_global_{name}", {"source": source}) == rounds[-1][source][name]
    for direction in ("down", "up"):
        expected = sum(line["bytes"][direction] for line in rounds)
        assert value("fl_message_bytes_total", {"direction": direction}) == expected > 0
    assert (value("fl_clients_connected"), value("fl_clients_selected")) == (4, 4)
    client = {"partition": "2"}
    # 2 rounds of 2 epochs on 54 examples
    assert value("fl_client_fits_total", client) == 2
    assert value("fl_client_epochs_total", client) == 4
    assert value("fl_client_examples_total", client) == 216
    assert value("fl_client_fit_duration_seconds_count", client) == 2
    final = read_lines(tmp_path / "run" / "clients.jsonl")[-2]
    assert (final["phase"], final["partition"]) == ("final", 2)
    assert value("fl_client_accuracy", client) == final["accuracy"]
    assert value("fl_client_loss", client) == final["loss"]
    assert value("fl_run_state", {"state": "completed"}) == 1
    assert value("fl_run_state", {"state": "running"}) == 0
    spec = make_experiment()
    info = {
        "name": "test",
        "strategy": "fedavg",
        "dataset": spec.data.dataset,
        "model": "mlp",
        "seed": "0",
    }
    assert value("fl_run_info", info) == 1


def test_failures_are_counted_by_reason() -> None:
    metrics = PrometheusMetrics(2)
    metrics(ClientReplied(1, "train", 0, reason="diverged", error="x"))
    metrics(ClientReplied(1, "evaluate", 1, reason="diverged", error="x"))
    value = metrics.registry.get_sample_value
    counts = {
        r: value("fl_client_failures_total", {"reason": r})
        for r in ("error", "diverged", "deadline", "lost")
    }
    assert counts == {"error": 0, "diverged": 2, "deadline": 0, "lost": 0}


@pytest.mark.parametrize(("clients", "series"), [(100, 1.0), (101, None)])
def test_series_by_client_stop_at_a_hundred_clients(clients: int, series: float | None) -> None:
    metrics = PrometheusMetrics(clients)
    metrics(ClientReplied(1, "train", 7, {"epochs": 1.0, "num-examples": 5.0, "seconds": 0.1}))
    assert metrics.registry.get_sample_value("fl_client_fits_total", {"partition": "7"}) == series


def test_the_table_is_what_is_exported(make_experiment: Any, tmp_path: Path) -> None:
    metrics = PrometheusMetrics(4)
    run(make_experiment(), tmp_path / "run", [metrics])
    families = {family.name: family for family in metrics.registry.collect()}
    ours = {name: family for name, family in families.items() if name.startswith("fl_")}
    assert set(ours) == {m.name.removesuffix("_total").removesuffix("_info") for m in METRICS}
    for row in METRICS:
        family = ours[row.name.removesuffix("_total").removesuffix("_info")]
        assert (family.type, family.documentation) == (row.kind, row.help)
        assert family.samples, row.name
    assert "process_cpu_seconds" in families
    assert "process_resident_memory_bytes" in families


class Scrape:
    """A sink that fetches the page as Prometheus does, after the first round."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/metrics"
        self.text = ""

    def __call__(self, event: Any) -> None:
        if isinstance(event, RoundFinished) and event.round == 1:
            with urllib.request.urlopen(self.address, timeout=5) as page:
                self.text = page.read().decode()


def test_prometheus_can_read_the_page_while_the_run_goes_on(
    make_experiment: Any, tmp_path: Path, free_port: int
) -> None:
    metrics = PrometheusMetrics(4)
    scrape = Scrape(free_port)
    with served(metrics.registry, free_port):
        run(make_experiment(), tmp_path / "run", [metrics, scrape])
    samples = {
        (s.name, tuple(s.labels.values())): s.value
        for family in text_string_to_metric_families(scrape.text)
        for s in family.samples
    }
    assert samples["fl_rounds_total", ()] == 1
    assert samples["fl_run_state", ("running",)] == 1
    assert samples["process_resident_memory_bytes", ()] > 50_000_000
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(scrape.address, timeout=5)


def test_a_port_that_is_taken_is_an_input_error(free_port: int) -> None:
    registry = PrometheusMetrics(1).registry
    with (
        served(registry, free_port),
        pytest.raises(InputError, match=f"--metrics-port {free_port}"),
        served(registry, free_port),
    ):
        pass


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "x.jsonl", lambda line: True)
    file.append(
        {"round": 1, "a": float("nan"), "b": {"c": float("inf"), "d": [1.5, float("-inf")]}}
    )
    text = (tmp_path / "x.jsonl").read_text()
    assert json.loads(text) == {"round": 1, "a": None, "b": {"c": None, "d": [1.5, None]}}


def checkpoint(round: int) -> Checkpoint:
    arrays = {"w": np.full((2, 2), round, np.float32), "n": np.asarray(round, np.int64)}
    strategy = FedAvg()
    strategy.momentum = round  # type: ignore[attr-defined]
    return Checkpoint(round, ArrayRecord({k: Array(v) for k, v in arrays.items()}), strategy)


def test_the_last_two_checkpoints_are_kept_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    for round in (1, 2, 3):
        write_checkpoint(folder, checkpoint(round))
    assert len(list(folder.iterdir())) == 4
    saved = read_checkpoint(folder, rounds=3)
    assert (saved.round, saved.strategy["momentum"]) == (3, 3)
    assert saved.arrays["w"].numpy().tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert (saved.arrays["n"].numpy().dtype, saved.arrays["n"].shape) == (np.int64, ())
    assert read_checkpoint(folder, rounds=2).round == 2
    with pytest.raises(InputError, match="no checkpoint"):
        read_checkpoint(folder, rounds=1)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomic(tmp_path / "f", "old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("f", "old")]


def test_a_sink_takes_every_kind_of_event() -> None:
    metrics = PrometheusMetrics(1)
    metrics(PhaseStarted(1, "train", (0,)))
    metrics(checkpoint(1))
    metrics(RunFinished("failed", 0, 1.0, "x"))
    assert metrics.registry.get_sample_value("fl_run_state", {"state": "failed"}) == 1


def test_peak_memory_is_the_programs_own_not_its_parents() -> None:
    """A child begins with its parent's peak in getrusage, which is where one would look first."""
    held = bytearray(600 * 2**20)
    code = (
        "from flsimulation.telemetry.process import peak_memory_bytes as peak\n"
        "before = peak(); held = bytearray(200 * 2**20); print(before, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 100 * 2**20
    assert 200 * 2**20 < after < 300 * 2**20
    assert len(held) == 600 * 2**20
