"""The metrics, the exporter and the checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load
from tests.conftest import PATIENCE

from flsimulation import run
from flsimulation.errors import InputError, RunError
from flsimulation.events import (
    Checkpoint,
    ClientReplied,
    ClientsConnected,
    Judged,
    PhaseStarted,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from flsimulation.host.files import write_atomic
from flsimulation.messages.arrays import HeldArray, joined
from flsimulation.metrics.exporter import served
from flsimulation.metrics.server import PrometheusMetrics
from flsimulation.metrics.table import METRICS
from flsimulation.privacy.accountant import Mechanism, epsilon_of
from flsimulation.rundir import RunRecord
from flsimulation.rundir.checkpoint import (
    read_checkpoint,
    safetensors_of,
    state_of,
    write_checkpoint,
)
from flsimulation.rundir.jsonlines import JsonLines
from flsimulation.rundir.state import load_state


def metrics_of_a_run(experiment: Any, path: Path, *sinks: Any) -> Any:
    metrics = PrometheusMetrics(experiment.data.clients)
    run(experiment, path, [metrics, *sinks])
    return metrics.registry.get_sample_value


@pytest.mark.seconds
def test_the_metrics_of_a_run_equal_its_run_directory(make_experiment: Any, tmp_path: Path) -> None:
    value = metrics_of_a_run(make_experiment(train={"epochs": 2}), tmp_path / "run")
    rounds = RunRecord(tmp_path / "run").rounds
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
    assert (value("fl_clients_connected"), value("fl_clients_selected")) == (4, 0)
    assert (value("fl_run_answers"), value("fl_clients_awaited")) == (20, 0)  # 2 x 8, and the end
    client = {"partition": "2"}
    # 2 rounds of 2 epochs on 54 examples
    assert value("fl_client_fits_total", client) == 2
    assert value("fl_client_epochs_total", client) == 4
    assert value("fl_client_examples_total", client) == 216
    assert value("fl_client_fit_duration_seconds_count", client) == 2
    final = list(RunRecord(tmp_path / "run").clients())[-2]
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
        "privacy": "none",
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


FIT = {"epochs": 1.0, "num-examples": 5.0, "seconds": 2.0, "loss": 0.5}


class Told:
    """Metrics that events are told at times of our own."""

    def __init__(self, experiment: Any, clients: int | None = 3) -> None:
        self.now = 1000.0
        self.metrics = PrometheusMetrics(clients, clock=lambda: self.now)
        self.experiment = experiment

    def begin(self) -> None:
        self.metrics(RunStarted(self.experiment, {}, 1, "", None, (), 1, 1))

    def phase(self, round: int, phase: Any, *cohort: int) -> None:
        self.metrics(PhaseStarted(round, phase, cohort))

    def reply(self, partition: int, phase: Any = "train", reason: str | None = None) -> None:
        answer = FIT if phase == "train" else {"accuracy": 0.8, "loss": 0.4}
        self.metrics(ClientReplied(1, phase, partition, answer, reason=reason))

    def round(self, number: int, seconds: float, accuracy: float, loss: float) -> None:
        laps = {"total": seconds, "train": seconds, "aggregate": 0.0, "evaluate": 0.0}
        scores = {"accuracy": accuracy, "loss": loss}
        size = {"down": 10, "up": number}
        self.metrics(RoundFinished(number, scores, None, None, (0, 1, 2), {}, laps, size, ""))

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"fl_{name}", labels)


@pytest.fixture
def told(make_experiment: Any) -> Told:
    return Told(make_experiment(data={"clients": 3}))


def test_the_clients_that_a_phase_waits_for_are_told(told: Told) -> None:
    def awaited() -> list[float | None]:
        return [told("client_awaited", partition=str(n)) for n in range(3)]

    told.begin()
    assert (awaited(), told("clients_awaited")) == ([0, 0, 0], 0)
    told.now = 1010.0
    told.phase(1, "train", 0, 2)
    assert (awaited(), told("clients_awaited")) == ([1, 0, 1], 2)
    assert told("phase_started_timestamp_seconds") == 1010
    told.reply(2)
    assert (awaited(), told("clients_awaited")) == ([1, 0, 0], 1)
    told.reply(0, reason="deadline")
    assert (awaited(), told("clients_awaited")) == ([0, 0, 0], 0)
    # An evaluation and a training that went out together are both waited for.
    told.now = 1020.0
    told.phase(1, "evaluate", 0, 1)
    told.phase(2, "train", 0)
    told.reply(0, "evaluate")
    assert (awaited(), told("clients_awaited")) == ([1, 1, 0], 2)
    told.reply(0, "train")
    assert (awaited(), told("clients_awaited")) == ([0, 1, 0], 1)
    told.metrics(RunFinished("interrupted", 1, 1.0))
    assert (awaited(), told("clients_awaited"), told("clients_selected")) == ([0, 0, 0], 0, 0)
    assert told("phase_started_timestamp_seconds") == 0


def test_with_many_clients_the_number_that_is_waited_for_is_told(make_experiment: Any) -> None:
    told = Told(make_experiment(data={"clients": 101}), clients=101)
    told.begin()
    told.phase(1, "train", 0, 100)
    told.reply(100)
    assert told("clients_awaited") == 1
    assert told("client_awaited", partition="0") is None


def test_a_round_in_progress_is_told_until_it_ends(told: Told) -> None:
    told.begin()
    told.now = 1010.0
    told.phase(1, "train", 0)
    assert (told("run_current_round"), told("round_started_timestamp_seconds")) == (1, 1010)
    told.now = 1020.0
    told.phase(1, "evaluate", 0)  # with the training of the next round, as on a network
    told.phase(2, "train", 0)
    told.round(1, 4.0, 0.5, 1.0)
    assert (told("run_current_round"), told("round_started_timestamp_seconds")) == (2, 1020)
    told.round(2, 6.0, 0.5, 1.0)
    assert told("round_started_timestamp_seconds") == 0
    assert told("run_round_mean_seconds") == 5
    assert told("last_round_seconds", phase="train") == 6
    assert told("last_round_bytes", direction="up") == 2


def test_the_best_scores_of_a_run_leave_out_what_is_not_finite(told: Told) -> None:
    told.begin()
    for accuracy, loss in ((0.5, 1.0), (0.7, 0.6), (0.6, float("nan"))):
        told.metrics(Judged(1, {"accuracy": accuracy, "loss": loss}))
    assert told("global_accuracy", source="central") == 0.6
    assert told("global_accuracy_highest", source="central") == 0.7
    assert told("global_loss_lowest", source="central") == 0.6


def test_the_values_of_a_run_begin_anew_with_the_next_and_counters_do_not(told: Told) -> None:
    told.begin()
    told.metrics(ClientsConnected((0, 1, 2), 3))
    told.phase(1, "train", 0, 1, 2)
    told.reply(0)
    told.reply(1, "evaluate")
    told.reply(2, reason="lost")
    told.round(1, 4.0, 0.9, 0.1)
    told.metrics(RunFinished("degraded", 1, 4.0))
    assert told("run_state", state="degraded") == 1
    assert (told("run_answers"), told("run_failures", reason="lost")) == (3, 1)
    assert told("client_fit_mean_seconds", partition="0") == 2
    assert told("client_accuracy", partition="1") == 0.8

    told.now = 2000.0
    told.begin()
    assert told("run_started_timestamp_seconds") == 2000
    zero = ("run_round", "run_current_round", "run_round_mean_seconds", "run_answers")
    assert [told(name) for name in zero] == [0, 0, 0, 0]
    assert told("run_failures", reason="lost") == 0
    gone = (
        ("client_fit_mean_seconds", {"partition": "0"}),
        ("client_train_loss", {"partition": "0"}),
        ("client_loss", {"partition": "1"}),
        ("client_accuracy", {"partition": "1"}),
        ("client_connected", {"partition": "1"}),
        ("global_accuracy", {"source": "central"}),
        ("global_accuracy_highest", {"source": "central"}),
        ("global_loss_lowest", {"source": "central"}),
        ("last_round_seconds", {"phase": "train"}),
        ("last_round_bytes", {"direction": "up"}),
    )
    assert {name: told(name, **labels) for name, labels in gone} == {n: None for n, _ in gone}
    told.round(1, 8.0, 0.2, 2.0)
    assert told("run_round_mean_seconds") == 8
    assert told("global_accuracy_highest", source="central") == 0.2
    kept = told("client_fits_total", partition="0"), told("client_failures_total", reason="lost")
    assert (kept, told("rounds_total")) == ((1, 1), 2)


def test_a_clients_training_time_is_that_of_its_last_five_trainings() -> None:
    metrics = PrometheusMetrics(1)
    for seconds in (100.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        metrics(ClientReplied(1, "train", 0, FIT | {"seconds": seconds}))
    mean = metrics.registry.get_sample_value("fl_client_fit_mean_seconds", {"partition": "0"})
    assert mean == 3


def test_the_table_is_what_is_exported(make_experiment: Any, tmp_path: Path) -> None:
    metrics = PrometheusMetrics(4)
    private = {"mode": "central", "noise-multiplier": 1.0, "delta": 0.01, "budget-epsilon": 50.0}
    run(make_experiment(privacy=private), tmp_path / "run", [metrics])
    families = {family.name: family for family in metrics.registry.collect()}
    ours = {name: family for name, family in families.items() if name.startswith("fl_")}
    assert set(ours) == {m.name.removesuffix("_total").removesuffix("_info") for m in METRICS}
    for row in METRICS:
        family = ours[row.name.removesuffix("_total").removesuffix("_info")]
        assert (family.type, family.documentation) == (row.kind, row.help)
        assert family.samples, row.name
    of_two = epsilon_of(Mechanism(1.0, 1.0), 2, 0.01)
    labels = {"epsilon": {"delta": "0.01"}, "budget_epsilon": {}, "clip_norm": {}}
    found = {
        name: metrics.registry.get_sample_value(f"fl_privacy_{name}", {"mode": "central"} | more)
        for name, more in labels.items()
    }
    assert found == {"epsilon": pytest.approx(of_two), "budget_epsilon": 50.0, "clip_norm": 1.0}
    assert "process_cpu_seconds" in families
    assert "process_resident_memory_bytes" in families


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"mode": "none"}, "none"),
        ({"mode": "central", "noise-multiplier": 1.0, "delta": 0.01}, "central"),
        ({"secure-aggregation": True}, "secure aggregation"),
        (
            {"mode": "local", "noise-multiplier": 1.0, "delta": 0.01, "secure-aggregation": True},
            "local + secure aggregation",
        ),
    ],
)
def test_a_run_says_what_hides_its_clients(
    make_experiment: Any, privacy: dict[str, Any], words: str
) -> None:
    metrics = PrometheusMetrics(4)
    spec = make_experiment(privacy=privacy)
    metrics(RunStarted(spec, {}, 1, "", None, (), 1, 0))
    (family,) = (f for f in metrics.registry.collect() if f.name == "fl_run")
    assert [sample.labels["privacy"] for sample in family.samples] == [words]


class Scrape:
    """A sink that fetches the page as Prometheus does, after the first round."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/metrics"
        self.text = ""

    def __call__(self, event: Any) -> None:
        if isinstance(event, RoundFinished) and event.round == 1:
            with urllib.request.urlopen(self.address, timeout=PATIENCE) as page:
                self.text = page.read().decode()


@pytest.mark.seconds
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
        urllib.request.urlopen(scrape.address, timeout=PATIENCE)


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
        saved_now = checkpoint(round)
        model, strategy = safetensors_of(saved_now.arrays), state_of(saved_now.strategy)
        write_checkpoint(folder, round, model, strategy)
    assert len(list(folder.iterdir())) == 4
    saved = read_checkpoint(folder, rounds=3)
    assert (saved.round, saved.strategy["momentum"]) == (3, 3)
    assert saved.arrays["w"].numpy().tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert (saved.arrays["n"].numpy().dtype, saved.arrays["n"].shape) == (np.int64, ())
    assert read_checkpoint(folder, rounds=2).round == 2
    with pytest.raises(InputError, match="no checkpoint"):
        read_checkpoint(folder, rounds=1)


def test_a_checkpoint_with_a_pickle_is_refused_with_what_to_do(tmp_path: Path) -> None:
    saved = checkpoint(1)
    write_checkpoint(tmp_path, 1, safetensors_of(saved.arrays), state_of(saved.strategy))
    (tmp_path / "round-000001.strategy.safetensors").unlink()
    (tmp_path / "round-000001.strategy.pickle").write_bytes(b"\x80\x04N.")
    with pytest.raises(
        InputError, match=r"which are not read: .*; resume with that version .*, or start"
    ):
        read_checkpoint(tmp_path, rounds=1)


STATE: dict[str, Any] = {
    "nothing": None,
    "flag": True,
    "count": 3,
    "rate": 0.1,
    "far": float("-inf"),
    "name": "fed\navg",
    "raw": b"\x00\xff",
    "m_t": {"w": np.arange(3.0), "empty": np.zeros((0, 2), np.float32)},
    "scalar": np.float64(1 / 3),
    "momentum": [np.float32([1, 2]), (np.asarray(7), None)],
    "current_arrays": ArrayRecord({"b": Array(np.ones(2)), "a": Array(np.zeros((1, 2), np.int8))}),
    "key": Array(np.asarray(True)),
}


def test_a_state_is_the_same_after_it_was_stored() -> None:
    strategy = SimpleNamespace(**STATE, aggregate=len)
    content = state_of(cast(Any, strategy))
    found = load_state(content)
    assert list(found) == list(STATE)  # without the function
    records = {name: found.pop(name) for name in ("current_arrays", "key")}
    assert {n: a.numpy().tolist() for n, a in records["current_arrays"].items()} == {
        "b": [1, 1],
        "a": [[0, 0]],
    }
    assert list(records["current_arrays"]) == ["b", "a"]
    assert records["key"].numpy().tolist() is True
    expected = {name: STATE[name] for name in found}
    assert repr(found) == repr(expected)  # types, too
    assert type(found["scalar"]) is np.float64


def test_a_state_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(RunError, match="attribute lock is a set, which a checkpoint cannot store"):
        state_of(cast(Any, SimpleNamespace(lock={1})))


KINDS = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16"]


def test_a_model_of_any_type_shape_and_order_is_read_by_safetensors() -> None:
    values = {kind: np.arange(6, dtype=kind).reshape(2, 3) for kind in [*KINDS, "uint32", "uint64"]}
    values |= {
        "flags": np.array([True, False]),
        "complex": np.array([1 + 2j], np.complex64),
        "number": np.asarray(2.5),
        "empty": np.zeros((0, 4), np.float32),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "backwards": np.arange(3, dtype=">f4"),
        'a "name"': np.ones(1),
    }
    found = load(b"".join(safetensors_of(joined({n: HeldArray(v) for n, v in values.items()}))))
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype.newbyteorder("<")
        assert found[name].shape == value.shape
        assert np.array_equal(found[name], value)


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
        "from flsimulation.host.usage import peak_memory_bytes as peak\n"
        "before = peak(); held = bytearray(200 * 2**20); print(before, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 100 * 2**20
    assert 200 * 2**20 < after < 300 * 2**20
    assert len(held) == 600 * 2**20
