"""The table of a run on the console: which metrics it shows, and how their numbers are aligned."""

from __future__ import annotations

import io
import math
import threading
from typing import Any

import pytest
from rich.console import Console
from tests.conftest import PATIENCE

from flsimulation.cli.columns import number
from flsimulation.cli.view import PlainView
from flsimulation.cli.waiting import Waiting
from flsimulation.events import ClientReplied, Noticed, RoundFinished, RunFinished, Scores
from flsimulation.experiment import Experiment


def finished(
    round: int, central: Scores | None, federated: Scores | None = None, seconds: float = 1.5
) -> RoundFinished:
    return RoundFinished(
        round, central, federated, None, (0, 1), {}, {"total": seconds}, {"down": 0, "up": 0}, "00"
    )


def shown(experiment: Experiment, events: list[Any], columns: tuple[str, ...] = ()) -> list[str]:
    """The lines that a view prints."""
    output = io.StringIO()
    view = PlainView(Console(file=output, width=60), experiment, columns)
    for event in events:
        view(event)
    return output.getvalue().splitlines()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.2500"),
        (0.0, "0.0000"),
        (-3.5, "-3.5000"),
        (315_000.0, "315000.0"),
        (91_034_512_345.6, "9.1035e10"),
        (-91_034_512_345.6, "-9.1035e10"),
        (1e-7, "1.0000e-7"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_a_number_keeps_its_leading_digits_at_any_size(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    "value", [-123_456.789, 99_999.999_96, -1.5e-120, -9.9e300, 1e5, -math.inf, math.nan]
)
def test_a_number_leaves_a_space_in_a_column(value: float) -> None:
    text = number(value, width=10)
    assert len(text) < 10
    assert math.isnan(value) or float(text) == pytest.approx(value, rel=0.02)


def test_rows_of_any_numbers_stay_below_their_names(make_experiment: Any) -> None:
    experiment = make_experiment(strategy={"rounds": 100_000})
    central = [9.1e10, 1e-7, math.nan, -123_456.789, -2e-90]
    events = [
        finished(99_990 + i, {"loss": value, "accuracy": value}, {"loss": -value}, 1e4 * 10**i)
        for i, value in enumerate(central)
    ]
    header, *rows = shown(experiment, events)
    ends = [header.index(word) + len(word) for word in ("round", "test loss", "accuracy")]
    assert len({len(line) for line in (header, *rows)}) == 1
    for line in rows:
        assert len(line.split()) == 7
        assert all(line[end - 1] != " " and line[end] == " " for end in ends)


def test_a_model_without_accuracy_shows_the_first_metric_of_its_own(make_experiment: Any) -> None:
    scores = {"loss": 9.1e10, "rmse": 301_662.0, "mae": 2.0}
    events = [
        finished(1, scores, {"loss": 1.0, "rmse": 4.0}),
        ClientReplied(2, "final", 0, {"num-examples": 5, "loss": 1.0, "rmse": 3.0}),
        ClientReplied(2, "final", 1, {"num-examples": 5, "loss": 1.0, "rmse": 5.0}),
        RunFinished("completed", 2, 3.0),
    ]
    header, row, _, summary = shown(make_experiment(), events)
    assert header.split() == [
        "round",
        "test",
        "loss",
        "rmse",
        "clients'",
        "loss",
        "rmse",
        "seconds",
        "failed",
    ]
    assert row.split() == ["1/2", "9.1000e10", "301662.0", "1.0000", "4.0000", "1.50", "-"]
    assert "3.0 s, loss 9.1000e10, rmse 301662.0, clients' rmse 4.0000 ± 1.0000" in summary
    assert "3.0000 to 5.0000" in summary
    assert "accuracy" not in summary


def test_columns_follow_the_first_model_that_is_evaluated(make_experiment: Any) -> None:
    events = [finished(1, None), finished(2, {"loss": 1.0, "f1": 0.5}), finished(3, {"loss": 1.0})]
    lines = shown(make_experiment(strategy={"rounds": 3}), events)
    assert [line.split()[0] for line in lines] == ["round", "1/3", "round", "2/3", "3/3"]
    assert "accuracy" in lines[0]
    assert "f1" in lines[2]


def test_chosen_columns_are_shown_and_summarized(make_experiment: Any) -> None:
    scores = {"loss": 0.5, "accuracy": 0.75, "f1": 0.25}
    events = [
        finished(1, scores, {"loss": 0.5, "f1": 0.125}),
        *(ClientReplied(2, "final", i, {"f1": 0.25 * i, "accuracy": 0.5}) for i in range(3)),
        RunFinished("completed", 2, 3.0),
    ]
    header, row, _, summary = shown(make_experiment(), events, ("f1", "val_acc"))
    assert header.split() == [
        "round",
        "test",
        "f1",
        "accuracy",
        "clients'",
        "f1",
        "accuracy",
        "seconds",
        "failed",
    ]
    assert row.split() == ["1/2", "0.2500", "0.7500", "0.1250", "-", "1.50", "-"]
    assert "s, accuracy 0.7500, f1 0.2500, clients' f1 0.2500 ± 0.2041, 0.0000 to" in summary
    assert "clients' accuracy 0.5000 ± 0.0000, lowest 0.5000" in summary
    assert "loss" not in summary


def test_an_unknown_column_is_answered_once_with_the_names_that_exist(make_experiment: Any) -> None:
    events = [finished(1, {"loss": 1.0, "f1": 0.5}), finished(2, {"loss": 1.0, "f1": 0.5})]
    lines = shown(make_experiment(), events, ("rmse", "f1"))
    assert lines[2] == "  --columns rmse: the model logs no such metric; it logs loss, f1"
    assert len(lines) == 4
    assert lines[3].split() == ["2/2", "-", "0.5000", "-", "-", "1.50", "-"]


def test_the_spread_of_infinite_values_is_no_error(make_experiment: Any) -> None:
    events = [
        ClientReplied(2, "final", 0, {"loss": math.inf}),
        ClientReplied(2, "final", 1, {"loss": 1.0}),
        RunFinished("completed", 2, 3.0),
    ]
    assert "clients' loss inf ± nan, 1.0000 to inf" in shown(make_experiment(), events)[-1]


def test_a_notice_has_a_line_of_its_own(make_experiment: Any) -> None:
    lines = shown(make_experiment(), [Noticed("the model logs no loss"), finished(1, {"f1": 0.5})])
    assert lines[0] == "  the model logs no loss"
    assert lines[1].split() == ["round", "test", "f1", "clients'", "f1", "seconds", "failed"]


class Ticks(threading.Event):
    """An event whose time passes at once, and which is set after some waits."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.left, self.pauses = waits, list[float]()
        self.ended = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        self.left -= 1
        if self.left < 0:
            self.ended.set()
            return True
        return False


@pytest.mark.parametrize(
    ("runtime", "doing"), [("inprocess", "loading data and model"), ("network", "waiting for the")]
)
def test_a_long_preparation_is_shown_without_a_terminal(runtime: str, doing: str) -> None:
    lines, ticks = list[str](), Ticks(3)
    Waiting(lines.append, runtime, ticks).start()
    assert ticks.ended.wait(PATIENCE)
    assert [line.split(", ")[-1] for line in lines] == [f"{n} s so far" for n in (20, 40, 80)]
    assert all(line.startswith(f"  {doing}") for line in lines)
    assert ticks.pauses == [20.0, 20.0, 40.0, 80.0]


def test_nothing_is_said_after_the_first_event() -> None:
    over = threading.Event()
    Waiting(lambda _: None, "inprocess", over).stop()
    assert over.is_set()
