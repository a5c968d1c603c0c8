"""Which clients never succeeded, and whom a phase waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flsimulation.clock import VirtualClock
from flsimulation.events import ClientReplied, ClientsAwaited, RunStarted
from flsimulation.server.attempts import Attempts
from flsimulation.server.awaiting import Awaiting


def begun(make_experiment: Callable[..., Any], clients: int = 4, rounds: int = 5) -> Attempts:
    attempts = Attempts()
    experiment = make_experiment(data={"clients": clients}, strategy={"rounds": rounds})
    attempts(RunStarted(experiment, {}, 1, "", None, (), 1, 1))
    return attempts


def replied(partition: int, reason: str | None = None, phase: Any = "train") -> ClientReplied:
    return ClientReplied(1, phase, partition, reason=reason)


def test_a_client_that_failed_each_time_is_named(make_experiment: Any) -> None:
    attempts = begun(make_experiment)
    for _ in range(5):
        attempts(replied(0))
        attempts(replied(1, "lost"))
    assert attempts.never_succeeded() == (
        "client 1 never succeeded: the model is made without its data"
    )


@pytest.mark.parametrize("first", [None, "lost"])
def test_a_client_that_succeeded_once_is_not(make_experiment: Any, first: str | None) -> None:
    attempts = begun(make_experiment)
    for reason in (first, "lost" if first is None else None, "error", "error"):
        attempts(replied(2, reason))
    assert attempts.never_succeeded() == ""


def test_one_failure_among_many_rounds_says_little_but_not_in_the_only_round(
    make_experiment: Any,
) -> None:
    long, short = begun(make_experiment), begun(make_experiment, rounds=1)
    for attempts in (long, short):
        attempts(replied(3, "deadline"))
    assert long.never_succeeded() == ""
    assert short.never_succeeded().startswith("client 3 never succeeded")


def test_evaluations_do_not_count(make_experiment: Any) -> None:
    attempts = begun(make_experiment)
    for _ in range(3):
        attempts(replied(1, "error", "evaluate"))
    assert attempts.never_succeeded() == ""


def test_of_many_clients_three_are_named(make_experiment: Any) -> None:
    attempts = begun(make_experiment, clients=10)
    for partition in range(7):
        for _ in range(2):
            attempts(replied(partition, "error"))
    said = attempts.never_succeeded()
    assert said.startswith("clients 0, 1, 2 and 4 more never succeeded")


def test_what_was_before_a_resume_counts(make_experiment: Callable[..., Any]) -> None:
    def resumed(*earlier: tuple[int, str | None]) -> Attempts:
        attempts = Attempts(earlier)
        experiment = make_experiment(data={"clients": 4}, strategy={"rounds": 5})
        attempts(RunStarted(experiment, {}, 1, "", None, (), 1, 1, done=2))
        return attempts

    lost_later = resumed((1, None), (1, "lost"))
    lost_later(replied(1, "lost"))
    lost_later(replied(1, "lost"))
    assert lost_later.never_succeeded() == ""
    always = resumed((1, "lost"))
    always(replied(1, "lost"))
    assert always.never_succeeded().startswith("client 1 never succeeded")
    assert resumed((2, "error"), (2, "error")).never_succeeded().startswith("client 2 never")


def test_whom_a_phase_waits_for_is_said_less_and_less_often() -> None:
    said: list[ClientsAwaited] = []
    clock = VirtualClock()
    awaiting = Awaiting(3, "train", said.append, clock)
    clock.sleep(4.0)
    awaiting.answered()
    for _ in range(5, 100):
        clock.sleep(1.0)
        awaiting.look([1], 3)
    assert [(e.round, e.phase, e.partitions, e.seconds, e.others) for e in said] == [
        (3, "train", (1,), 10.0, 4.0),
        (3, "train", (1,), 20.0, 4.0),
        (3, "train", (1,), 40.0, 4.0),
        (3, "train", (1,), 80.0, 4.0),
    ]


def test_a_phase_that_takes_long_for_all_is_no_news() -> None:
    said: list[ClientsAwaited] = []
    clock = VirtualClock()
    awaiting = Awaiting(1, "train", said.append, clock)
    clock.sleep(30.0)
    awaiting.look([0, 1], 2)  # nobody has answered
    awaiting.answered()
    clock.sleep(20.0)
    awaiting.look([1], 2)  # not twice as long as the other took
    assert said == []
    clock.sleep(10.0)
    awaiting.look([1], 2)
    assert [e.seconds for e in said] == [60.0]
