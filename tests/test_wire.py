"""Events and reports on their way from process to process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg

from flsimulation import RunResult, load_experiment, resume, run
from flsimulation.errors import ClientError, InputError, RunError
from flsimulation.events import (
    Checkpoint,
    ClientMoved,
    ClientReplied,
    ClientsConnected,
    EngineReported,
    Judged,
    PhaseStarted,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from flsimulation.messages.batch import Batch, Outcome, Reply, Task
from flsimulation.metrics.client import ClientMetrics
from flsimulation.node import sockets
from flsimulation.node.client_app import _tell
from flsimulation.runtimes import open_runtime
from flsimulation.runtimes.network import drive, lines
from flsimulation.runtimes.network.events import from_json, to_json
from flsimulation.runtimes.network.flower import write_app
from flsimulation.studies.verify import Observed, compare, verify_engines

pytestmark = pytest.mark.seconds

STARTED = RunStarted(
    experiment=load_experiment(None, ["model.args={hidden = [8, 8]}"]),
    model_arguments={"hidden": [8, 8]},
    parameters=10,
    data_digest="d",
    histogram={"0": [1, 2]},
    classes=("a", "b"),
    train_examples=3,
    test_examples=2,
)


def finished(number: int, loss: float = 0.5, cohort: tuple[int, ...] = (0, 1)) -> RoundFinished:
    return RoundFinished(
        round=number,
        central={"loss": loss},
        federated=None,
        train={"loss": 1.0},
        cohort=cohort,
        failures={"lost": 1},
        seconds={"total": 1.0, "train": 0.5, "aggregate": 0.1, "evaluate": 0.4},
        bytes={"down": 1, "up": 2},
        weights_sha256=f"sha {number} {loss}",
    )


EVENTS = (
    STARTED,
    ClientsConnected((0, 2), 3),
    ClientMoved(2, "refused", "lodz", 1, "site lodz has the class 'ja'"),
    EngineReported("lightning", "BatchNorm1d keeps running statistics"),
    PhaseStarted(1, "train", (0, 1)),
    ClientReplied(1, "train", 0, {"loss": 0.25, "num-examples": 3}),
    ClientReplied(1, "evaluate", 1, reason="lost", error="it went away"),
    Judged(1, {"loss": 0.5}),
    finished(1),
    RunFinished("failed", 1, 2.5, "why"),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event: Any) -> None:
    line = to_json(event)
    assert line is not None
    assert "\n" not in line
    assert from_json(line) == event


def test_not_a_number_stays_one_and_a_checkpoint_stays_at_home() -> None:
    back = from_json(str(to_json(Judged(1, {"loss": math.nan}))))
    assert isinstance(back, Judged)
    assert math.isnan(back.central["loss"])
    assert to_json(Checkpoint(1, ArrayRecord(), FedAvg())) is None


@pytest.mark.parametrize("line", ["", "{}", "[]", '{"event": "Nothing"}', '{"event": "Judged"}'])
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not an event|Expecting value"):
        from_json(line)


def test_lines_for_people_are_no_events(capsys: pytest.CaptureFixture[str]) -> None:
    lines.tell(EVENTS[3])
    lines.tell_opened("runs/x")
    lines.tell_result({"state": "completed"})
    lines.tell_error("why", input=True)
    model = ArrayRecord({"w": Array(np.float32([1, 2]))})
    lines.tell_model(Checkpoint(4, model, FedAvg()))
    told = [lines.read(line) for line in capsys.readouterr().out.splitlines()]
    assert told[:4] == [
        EVENTS[3],
        {"run-dir": "runs/x"},
        {"result": {"state": "completed"}},
        {"error": "why", "input": True},
    ]
    assert isinstance(told[4], Checkpoint)
    assert (told[4].round, told[4].strategy) == (4, None)
    assert told[4].arrays["w"].numpy().tolist() == [1, 2]
    for line in ("INFO : hello", f"{lines.MARK}{{cut", f"{lines.MARK}[1]", ""):
        assert lines.read(line) is None


class Played:
    """Flower's command line, playing a log back."""

    superlink = "127.0.0.1:8080"

    def __init__(self, log: list[str], breaks_after: int | None = None) -> None:
        self.log, self.stopped = log, list[str]()
        self.breaks_after, self.states = breaks_after, ["finished:failed"]
        self.first: list[str] | None = None  # what the first stream brings, if not the log

    def __enter__(self) -> Played:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def check(self) -> None:
        return None

    def submit(self, config: dict[str, Any]) -> str:
        self.config = config
        return "7"

    def follow(self, run_id: str) -> Any:
        import contextlib

        told, self.breaks_after = self.log[: self.breaks_after], None
        if self.first is not None:
            told, self.first = self.first, None
        return contextlib.nullcontext(iter(told))

    def stop(self, run_id: str) -> None:
        self.stopped.append(run_id)

    def state(self, run_id: str) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


def play(
    monkeypatch: pytest.MonkeyPatch, log: list[str], breaks_after: int | None = None
) -> Played:
    played = Played(log, breaks_after)
    monkeypatch.setattr(drive, "flower", lambda superlink: played)
    monkeypatch.setattr(drive, "_AGAIN_SECONDS", 0.0)
    return played


RESULT = {
    "name": "x", "state": "completed", "rounds": 1, "accuracy": 0.5, "loss": None, "seconds": 1.5,
    "peak_memory_bytes": 3, "run_dir": "runs/a", "weights_sha256": "ab",
}  # fmt: skip
ON_NETWORK = load_experiment(None, ["runtime.kind=network"])


def mark(content: dict[str, Any]) -> str:
    return lines.MARK + json.dumps(content)


def test_a_driver_ends_with_the_result_and_passes_events_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = [
        "INFO: noise",
        mark({"run-dir": "runs/a"}),
        lines.MARK + str(to_json(EVENTS[6])),
        mark({"result": RESULT}),
        mark({"error": "never read", "input": False}),
    ]
    played, seen, opened = play(monkeypatch, log), list[Any](), list[Path]()
    assert run(ON_NETWORK, "out", [seen.append], opened.append) == RunResult(**RESULT)
    assert (seen, opened) == ([EVENTS[6]], [Path("runs/a")])
    assert played.config["driver.out"] == "out"
    assert {"driver.resume", "driver.models"} & played.config.keys() == set()
    assert resume("part", [seen.append], ON_NETWORK) == RunResult(**RESULT)
    assert seen == [EVENTS[6]] * 2
    assert played.config["driver.resume"] == "part"
    assert "driver.out" not in played.config
    assert played.stopped == []


def test_checkpoints_travel_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.tell_model(Checkpoint(2, ArrayRecord({"w": Array(np.float32([1, 2]))}), FedAvg()))
    log = [*capsys.readouterr().out.splitlines(), mark({"result": RESULT})]
    played, seen = play(monkeypatch, log), list[Any]()
    with open_runtime(ON_NETWORK) as runtime:
        assert (runtime.place, runtime.federate) == ("127.0.0.1:8080", None)
        runtime.run(sinks=[seen.append], checkpoints=True)
    assert played.config["driver.models"] is True
    (checkpoint,) = seen
    assert (checkpoint.round, checkpoint.strategy) == (2, None)
    assert checkpoint.arrays["w"].numpy().tolist() == [1, 2]


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_a_driver_raises_what_the_server_says(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    play(monkeypatch, [mark({"error": "so it is", "input": kind is InputError})])
    with pytest.raises(kind, match="^so it is$"):
        run(ON_NETWORK)


def test_a_run_that_ends_without_a_word_says_that_nobody_knows_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play(monkeypatch, ["INFO: Start flwr-serverapp process\n", "\n"])
    with pytest.raises(
        RunError, match="^the run's process ended without a reason; see the SuperLi"
    ):
        run(ON_NETWORK)


@pytest.mark.parametrize(
    ("known", "note"),
    [
        ([], "if a round was completed, resume with"),  # the round's line may have been lost
        ([event for event in EVENTS if isinstance(event, RoundFinished)], "resume with"),
    ],
)
def test_a_cut_log_says_what_resumes_the_run(
    monkeypatch: pytest.MonkeyPatch, known: list[RoundFinished], note: str
) -> None:
    told = [lines.MARK + str(to_json(event)) for event in known]
    play(monkeypatch, [mark({"run-dir": "runs/a"}), *told])
    with pytest.raises(RunError, match="ended without a reason") as caught:
        run(ON_NETWORK)
    assert caught.value.__notes__ == [
        f"{note} `flsim run --resume runs/a --superlink 127.0.0.1:8080`"
    ]


@pytest.mark.parametrize("state", ["running", "finished:completed"])
@pytest.mark.parametrize("after", range(5))
def test_a_log_that_breaks_is_read_again_and_nothing_is_told_twice(
    monkeypatch: pytest.MonkeyPatch, after: int, state: str
) -> None:
    log = [
        "INFO: noise",
        mark({"run-dir": "runs/a"}),
        *(lines.MARK + str(to_json(event)) for event in EVENTS[5:7]),
        mark({"result": RESULT}),
    ]
    played, seen, opened = play(monkeypatch, log, after), list[Any](), list[Path]()
    played.states.insert(0, state)
    assert run(ON_NETWORK, None, [seen.append], opened.append) == RunResult(**RESULT)
    assert (seen, opened) == ([*EVENTS[5:7]], [Path("runs/a")])


def test_a_line_that_the_stream_left_out_is_requested_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.tell_opened("runs/a")
    for event in EVENTS[5:8]:
        lines.tell(event)
    lines.tell_result(RESULT)
    whole = capsys.readouterr().out.splitlines()
    numbers = [json.loads(line.removeprefix(lines.MARK))["line"] for line in whole]
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    log = [
        line.replace(f'"line": {n}', f'"line": {i}')
        for i, (n, line) in enumerate(zip(numbers, whole), 1)
    ]
    for left_out in range(4):
        seen = list[Any]()
        holed = [*log[:left_out], *log[left_out + 1 :]]
        played = play(monkeypatch, log)
        played.first = holed
        assert run(ON_NETWORK, None, [seen.append]) == RunResult(**RESULT)
        assert seen == [*EVENTS[5:8]]
        play(monkeypatch, holed)  # it never comes: the run ends all the same
        assert run(ON_NETWORK) == RunResult(**RESULT)


def test_a_driver_that_is_interrupted_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    played = play(monkeypatch, [lines.MARK + str(to_json(EVENTS[6]))])

    def interrupt(event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ON_NETWORK, sinks=[interrupt])
    assert played.stopped == ["7"]


def test_the_submitted_app_is_one_file_that_names_installed_components(tmp_path: Path) -> None:
    import tomllib

    write_app(tmp_path / "app", {"name": "x", "data.alpha": 0.5})
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["pyproject.toml"]
    table = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert table["components"]["clientapp"] == "flsimulation.node.client_app:app"
    assert table["config"] == {"name": "x", "data.alpha": 0.5}


def test_client_metrics_count_reports() -> None:
    metrics = ClientMetrics("a")
    value = metrics.registry.get_sample_value
    assert value("fl_client_info", {"name": "a", "partition": "none"}) == 1
    assert value("fl_client_crashes_total") == 0
    metrics.count({"partition": 3})  # it begins
    assert value("fl_client_info", {"name": "a", "partition": "3"}) == 1
    for _ in range(2):
        metrics.count(report_of(run=1))
    metrics.count({"run": 1, "partition": 3, "bytes": {"down": 5, "up": 0}, "metrics": {}})
    metrics.count({"killed": True})
    labels = {"partition": "3"}
    assert value("fl_client_info", {"name": "a", "partition": "3"}) == 1
    assert value("fl_client_fits_total", labels) == 2
    assert value("fl_client_epochs_total", labels) == 4
    assert value("fl_client_examples_total", labels) == 40
    assert value("fl_client_fit_duration_seconds_sum", labels) == 3.0
    assert value("fl_client_fit_mean_seconds", labels) == 1.5
    assert value("fl_client_train_loss", labels) == 0.3
    assert (value("fl_client_loss", labels), value("fl_client_accuracy", labels)) == (0.4, 0.9)
    assert value("fl_client_message_bytes_total", labels | {"direction": "down"}) == 15
    assert value("fl_client_last_message_bytes", labels | {"direction": "up"}) == 0
    assert value("fl_client_crashes_total") == 1


def report_of(run: int) -> dict[str, Any]:
    train = {"epochs": 2, "num-examples": 10, "seconds": 1.5, "loss": 0.3}
    return {
        "run": run,
        "partition": 3,
        "bytes": {"down": 5, "up": 7},
        "metrics": {"train": train, "evaluate": {"loss": 0.4, "accuracy": 0.9, "num-examples": 2}},
    }


def test_a_clients_values_begin_anew_with_the_first_message_of_a_run() -> None:
    metrics = ClientMetrics("a")
    value = metrics.registry.get_sample_value
    labels = {"partition": "3"}
    of_one_run = {
        **dict.fromkeys(("fl_client_accuracy", "fl_client_loss"), labels),
        **dict.fromkeys(("fl_client_train_loss", "fl_client_fit_mean_seconds"), labels),
        "fl_client_last_message_bytes": labels | {"direction": "up"},
    }
    metrics.count({"run": 1})
    metrics.count(report_of(run=1))
    assert all(value(name, by) is not None for name, by in of_one_run.items())
    metrics.count({"run": 2})  # the server asks who is there
    assert [value(name, by) for name, by in of_one_run.items()] == [None] * len(of_one_run)
    assert value("fl_client_info", {"name": "a", "partition": "none"}) == 1
    # A process that outlived its run counts, but what it says is no value of this one.
    metrics.count(report_of(run=1))
    assert value("fl_client_fits_total", labels) == 2
    assert [value(name, by) for name, by in of_one_run.items()] == [None] * len(of_one_run)
    assert value("fl_client_info", {"name": "a", "partition": "none"}) == 1


def test_a_report_has_the_numbers_and_bytes_of_each_phase(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(sockets, "send", lambda path, content: sent.append(content))
    monkeypatch.setenv("FLSIM_REPORTS", "somebody")
    model, settings = ArrayRecord({"w": Array(np.float32([1, 2]))}), ConfigRecord({"a": 1})
    batch = Batch(model, [Task(3, "evaluate", 1, settings), Task(3, "train", 2, settings)])
    scores, numbers = {"loss": 0.5, "num-examples": 2}, {"loss": 1.0, "num-examples": 8}
    trained = Outcome(3, "train", numbers, None, model)
    _tell(7, batch, Reply([Outcome(3, "evaluate", scores), trained]))
    failed = Outcome(3, "train", {}, ClientError("diverged", "its loss is nan"))
    _tell(7, batch, Reply([Outcome(3, "final", scores), failed]))
    size = model.count_bytes()
    down, up = size + 2 * settings.count_bytes(), MetricRecord(dict(scores)).count_bytes()
    assert sent == [
        {
            "run": 7,
            "partition": 3,
            "bytes": {"down": down, "up": 2 * up + size},
            "metrics": {"evaluate": scores, "train": numbers},
        },
        {
            "run": 7,
            "partition": 3,
            "bytes": {"down": down, "up": up},
            "metrics": {"evaluate": scores},
        },
    ]


def test_a_report_needs_no_listener(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLSIM_REPORTS", str(tmp_path / "nobody"))
    outcome = Outcome(0, "train", {"loss": 1.0})
    _tell(1, Batch(ArrayRecord(), [Task(0, "train", 1, ConfigRecord())]), Reply([outcome]))


def record(*rounds: RoundFinished, **models: Any) -> Observed:
    kept = {int(name[1:]): {"w": np.float32(value)} for name, value in models.items()}
    return Observed(STARTED, list(rounds), kept)


def test_verify_says_which_round_differs_and_how() -> None:
    here = record(finished(1), finished(2), m1=[1, 1], m2=[1, 1])
    same = record(finished(1), finished(2), m1=[1, 1], m2=[1, 1])
    seen: list[Any] = []
    assert compare(here, same, seen.append) == []
    assert [round.identical for round in seen] == [True, True]
    close = record(finished(1), finished(2, 0.5 + 1e-7), m1=[1, 1], m2=[1, 1 + 1e-7])
    assert compare(here, close) == []
    far = record(finished(1), finished(2, 0.6), m1=[1, 1.1], m2=[1, 1])
    differences = compare(here, far)
    assert differences[0].startswith("round 1: scores differ by 0.0e+00, weights by 7.1e-02")
    assert differences[1].startswith("round 2: scores differ by 1.7e-01")
    other = record(finished(1, cohort=(0, 2)), m1=[1, 1])
    assert compare(here, other) == [
        "2 rounds in one process, 1 in the other runtime",
        "round 1: cohort (0, 1) and (0, 2)",
    ]
    import dataclasses

    moved = record(finished(1), finished(2), m1=[1, 1], m2=[1, 1])
    moved.started = dataclasses.replace(STARTED, histogram={"0": [2, 1]})
    assert compare(here, moved) == [
        "the two runtimes do not hold the same data: the clients' partitions"
    ]
    unseen = record(finished(1), finished(2), m1=[1, 1], m2=[1, 1])
    unseen.started = None
    assert compare(here, unseen)[0].startswith("the run in the other runtime did not report")
    missing = record(finished(1), finished(2), m1=[1, 1])
    assert "round 2" in compare(here, missing)[0]


def test_the_direct_engine_agrees_bit_for_bit(make_experiment: Any) -> None:
    seen: list[Any] = []
    experiment = make_experiment(strategy={"rounds": 2}, evaluate={"clients": 2})
    assert verify_engines(experiment, seen.append, "direct") == []
    assert [(round.round, round.weights, round.identical) for round in seen] == [
        (1, 0.0, True),
        (2, 0.0, True),
    ]


@pytest.mark.parametrize(
    "strategy", [{"name": "fedavg"}, {"name": "fedavgm", "server-momentum": 0.9}]
)
def test_engines_agree_round_by_round(make_experiment: Any, strategy: dict[str, Any]) -> None:
    seen: list[Any] = []
    experiment = make_experiment(
        strategy={"rounds": 4, **strategy}, evaluate={"central-every": 3, "clients": 2}
    )
    assert verify_engines(experiment, seen.append) == []
    assert [round.round for round in seen] == [1, 2, 3, 4]
    assert all(round.same_cohort and round.tolerance == 1e-5 for round in seen)
    assert all(round.weights < 1e-5 for round in seen)
    # how many of their rounds are the same bit for bit depends on the processor and its threads
    assert [round.weights > 0 for round in seen] == [not round.identical for round in seen]


def test_engines_that_part_are_named_with_the_round(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flsimulation.training.lightning import LocalTrainer

    fit = LocalTrainer.fit

    def other(self: LocalTrainer, state: Any, *given: Any, **named: Any) -> Any:
        return fit(self, {name: value * 1.001 for name, value in state.items()}, *given, **named)

    monkeypatch.setattr(LocalTrainer, "fit", other)
    differences = verify_engines(make_experiment(strategy={"rounds": 2}))
    assert [line.split(":")[0] for line in differences] == ["round 1", "round 2"]
    assert all(line.endswith("the tolerance is 1e-05") for line in differences)
