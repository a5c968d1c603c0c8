"""The round loop over a Grid and strategies that the tests control."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from flsimulation.clock import VirtualClock
from flsimulation.errors import ClientError, RoundError, RunError, describe_error
from flsimulation.events import (
    Checkpoint,
    ClientReplied,
    Noticed,
    Phase,
    PhaseStarted,
    RoundFinished,
)
from flsimulation.experiment import Experiment
from flsimulation.messages.batch import Batch, Outcome, Reply, Task
from flsimulation.messages.weights import first_diverged, weights_sha256, with_types_of
from flsimulation.runtimes.inprocess import Answer, InProcessGrid
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.server.exchange import Exchange
from flsimulation.server.rounds import Rounds

Behaviour = Callable[[int, Phase], float]
"""What the fake client of a partition adds to the model; it may raise."""


def arrays(value: float, dtype: Any = np.float32) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full(2, value, dtype))})


def clients_that(behave: Behaviour, more: dict[int, dict[str, float]] | None = None) -> Answer:
    """They add to the model, and hold as many examples as their partition's number plus one."""

    def outcome(task: Task, model: ArrayRecord) -> Outcome:
        try:
            gain = behave(task.partition, task.phase)
        except ClientError as error:
            return Outcome(task.partition, task.phase, {}, error)
        except Exception as error:
            why = ClientError("error", describe_error(error))
            return Outcome(task.partition, task.phase, {}, why)
        metrics = {"num-examples": task.partition + 1, "loss": gain, "seconds": 0.1}
        metrics |= (more or {}).get(task.partition, {})
        if task.phase != "train":
            return Outcome(task.partition, task.phase, metrics)
        trained = ArrayRecord({"w": Array(model["w"].numpy() + np.float32(gain))})
        return Outcome(task.partition, task.phase, metrics, None, trained)

    def answer(batch: Batch) -> Iterator[Reply]:
        for task in batch.tasks:
            yield Reply([outcome(task, batch.model)])

    return answer


@pytest.fixture(autouse=True)
def identity() -> Iterable[None]:
    with flower_identity():
        yield


def federation(
    recorder: Any,
    behave: Behaviour = lambda p, m: float(p),
    clients: int = 4,
    rounds: int = 1,
    strategy: Any = None,
    train_share: float = 1.0,
    evaluate_share: float = 1.0,
    **tables: Any,
) -> Rounds:
    section = {"rounds": rounds, "fraction-train": train_share, "fraction-evaluate": evaluate_share}
    experiment = Experiment.model_validate(
        {"data": {"clients": clients}, "strategy": section, **tables}
    )
    grid = InProcessGrid(clients_that(behave), clients)
    exchange = Exchange(grid, experiment.round.deadline, recorder)
    spec = experiment.strategy
    strategy = strategy or FedAvg(spec.fraction_train, spec.fraction_evaluate, 1, 1, 1)
    judge = lambda _, record: {"loss": float(record["w"].numpy()[0])}  # noqa: E731
    return Rounds(experiment, strategy, exchange, judge, recorder)


def test_a_round_averages_by_examples_and_tells_what_happened(recorder: Any) -> None:
    final, *_ = federation(recorder, rounds=2).run(arrays(10.0))
    # partitions 0..3 add 0, 1, 2, 3 with weights 1, 2, 3, 4: (0 + 2 + 6 + 12) / 10 = 2 a round
    assert final["w"].numpy().tolist() == pytest.approx([14.0, 14.0])
    first, second = recorder.of(RoundFinished)
    assert first.central == {"loss": pytest.approx(12.0)}
    assert second.federated == {"loss": pytest.approx(2.0)}
    assert second.train == {"loss": pytest.approx(2.0)}
    assert (second.round, second.cohort, second.failures) == (2, (0, 1, 2, 3), {})
    assert second.weights_sha256 == weights_sha256(final)
    assert set(second.seconds) == {"total", "train", "aggregate", "evaluate"}
    assert second.seconds["total"] >= second.seconds["train"] + second.seconds["evaluate"]


def test_events_come_in_order_and_each_answer_is_one(recorder: Any) -> None:
    federation(recorder, rounds=1, clients=2).run(arrays(0.0))
    kinds = [type(event).__name__ for event in recorder.events]
    phase = ["PhaseStarted", "ClientReplied", "ClientReplied"]
    assert kinds == [*phase, "Checkpoint", "Judged", *phase, "RoundFinished"]
    assert [e.phase for e in recorder.of(PhaseStarted)] == ["train", "evaluate"]
    assert [e.partition for e in recorder.of(ClientReplied)] == [0, 1, 0, 1]
    assert recorder.of(Checkpoint)[0].round == 1


def test_bytes_count_the_payload_both_ways(recorder: Any) -> None:
    federation(recorder, rounds=1, clients=2, evaluate_share=0.0).run(arrays(0.0))
    (finished,) = recorder.of(RoundFinished)
    model = arrays(0.0).count_bytes()
    config = ConfigRecord({"server-round": 1}).count_bytes()
    metrics = MetricRecord({"num-examples": 1, "loss": 0.0, "seconds": 0.1}).count_bytes()
    assert finished.bytes == {"down": 2 * (model + config), "up": 2 * (model + metrics)}


def test_a_failed_client_is_named_counted_and_left_out(recorder: Any) -> None:
    def behave(partition: int, phase: Phase) -> float:
        if partition == 1:
            raise ValueError("boom")
        if partition == 2:
            raise ClientError("diverged", "its loss is nan")
        return float(partition)

    final, *_ = federation(recorder, behave, rounds=1).run(arrays(0.0))
    assert final["w"].numpy()[0] == pytest.approx(3 * 4 / 5)
    failed = [e for e in recorder.of(ClientReplied) if e.phase == "train" and e.reason]
    assert [(e.partition, e.reason) for e in failed] == [(1, "error"), (2, "diverged")]
    assert failed[0].error.startswith("ValueError: boom (test_rounds.py:")
    # each failed in training and in evaluation
    assert recorder.of(RoundFinished)[0].failures == {"diverged": 2, "error": 2}


def test_when_every_client_fails_the_run_stops_with_their_errors(recorder: Any) -> None:
    def behave(partition: int, phase: Phase) -> float:
        raise ValueError(f"boom {partition}")

    with pytest.raises(RoundError) as caught:
        federation(recorder, behave, rounds=3, clients=5).run(arrays(0.0))
    line = str(caught.value)
    assert line.startswith(
        "round 1: 0 of 5 clients succeeded, 1 needed; all 5 clients, as client 0:"
    )
    assert "ValueError: boom 0 (" in line
    assert "boom 1" not in line
    assert recorder.of(RoundFinished) == []


def test_the_first_causes_are_named_and_the_clients_of_others_counted(recorder: Any) -> None:
    def behave(partition: int, phase: Phase) -> float:
        raise ValueError(["left", "right", "left", "up", "down", "down"][partition])

    with pytest.raises(RoundError) as caught:
        federation(recorder, behave, rounds=3, clients=6).run(arrays(0.0))
    assert re.sub(r" \(.*?\)", "", str(caught.value)) == (
        "round 1: 0 of 6 clients succeeded, 1 needed; 2 clients: ValueError: left; "
        "client 1: ValueError: right; client 3: ValueError: up; and 2 more"
    )


def test_a_round_with_fewer_results_than_asked_stops_the_run(recorder: Any) -> None:
    def behave(partition: int, phase: Phase) -> float:
        if partition < 2:
            raise ValueError("boom")
        return 1.0

    rounds = federation(recorder, behave, rounds=1, round={"min-results": 3})
    with pytest.raises(RoundError, match="2 of 4 clients succeeded, 3 needed"):
        rounds.run(arrays(0.0))


def test_when_no_client_can_evaluate_the_run_stops(recorder: Any) -> None:
    def behave(partition: int, phase: Phase) -> float:
        if phase == "evaluate":
            raise ValueError("no")
        return 1.0

    with pytest.raises(
        RoundError, match="0 of 4 clients succeeded, 1 needed; all 4 clients: ValueError: no"
    ):
        federation(recorder, behave, rounds=1).run(arrays(0.0))


def test_clients_after_the_deadline_are_left_out_and_the_round_goes_on(
    recorder: Any,
) -> None:
    clock = VirtualClock()

    def behave(partition: int, phase: Phase) -> float:
        if phase == "train":
            clock.sleep(200.0)
        return 1.0

    class Watched(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            pushed = list(messages)
            told.extend(message.metadata.ttl for message in pushed)
            return super().push_messages(pushed)

    told: list[float] = []
    grid = Watched(clients_that(behave), 4, clock=clock)
    exchange = Exchange(grid, 300.0, recorder, clock=clock)
    replace(federation(recorder, rounds=1), exchange=exchange).run(arrays(0.0))
    assert told == [300.0, 300.0]  # a message knows when nobody waits any more
    (finished,) = recorder.of(RoundFinished)
    assert finished.failures == {"deadline": 2}
    late = [e for e in recorder.of(ClientReplied) if e.reason]
    assert [(e.partition, e.reason) for e in late] == [(2, "deadline"), (3, "deadline")]
    assert late[0].error == "no reply within 300 s"


class Silent(InProcessGrid):
    """A grid that never answers, as a network of dead clients."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return []


def test_a_federation_that_never_answers_does_not_hang(recorder: Any) -> None:
    exchange = Exchange(Silent(clients_that(lambda p, m: 1.0), 2), 0.2, recorder)
    tasks = [Task(partition, "train", 1, ConfigRecord()) for partition in (0, 1)]
    replies = exchange.post(1, "train", [Batch(arrays(0.0), tasks)])
    assert not replies.is_complete
    assert [len(reply.outcomes) for reply in exchange.outcomes()] == [2]
    assert replies.is_complete
    assert replies.metrics == {}
    assert {p: error.reason for p, error in replies.failures.items()} == {
        0: "deadline",
        1: "deadline",
    }


def test_cohorts_depend_on_the_seed_and_the_round_alone(recorder: Any) -> None:
    def cohorts(seed: int) -> list[tuple[int, ...]]:
        recorder.events.clear()
        random.seed(time.time_ns())
        federation(recorder, rounds=4, clients=40, train_share=0.1, seed=seed).run(arrays(0.0))
        return [e.cohort for e in recorder.of(RoundFinished)]

    first = cohorts(5)
    assert first == cohorts(5)
    assert len(set(first)) == 4
    assert first != cohorts(6)
    assert all(len(cohort) == 4 and list(cohort) == sorted(cohort) for cohort in first)


def test_the_global_random_stream_is_left_as_it_was(recorder: Any) -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    federation(recorder, rounds=2).run(arrays(0.0))
    assert random.random() == expected


class Shuffled(InProcessGrid):
    """Each client gets a message, and answers come in another order than they were asked for."""

    def divided(self, batch: Batch) -> Iterator[tuple[int | None, Batch]]:
        for task in batch.tasks:
            yield self.node_of(task.partition), replace(batch, tasks=[task])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(list(message_ids)[::-1])


def test_the_order_of_answers_changes_no_bit(recorder: Any) -> None:
    def behave(partition: int, phase: Phase) -> float:
        return 0.1 + 1e-3 * partition**3

    def result(kind: type[InProcessGrid]) -> str:
        rounds = federation(recorder, behave, rounds=2, clients=9)
        grid = kind(clients_that(behave), 9)
        exchange = Exchange(grid, 0.0, recorder)
        other = Rounds(rounds.experiment, rounds.strategy, exchange, rounds.judge, recorder)
        return weights_sha256(other.run(arrays(0.3))[0])

    assert result(InProcessGrid) == result(Shuffled)
    orders = [e.partition for e in recorder.of(ClientReplied) if e.phase == "train"]
    assert orders[:9] == list(range(9))
    assert orders[18:27] == list(range(9))[::-1]


def test_central_evaluation_keeps_to_its_interval_and_never_misses_the_last(recorder: Any) -> None:
    federation(recorder, rounds=5, evaluate={"central-every": 2}).run(arrays(0.0))
    judged = [e.round for e in recorder.of(RoundFinished) if e.central is not None]
    assert judged == [2, 4, 5]
    recorder.events.clear()
    federation(recorder, rounds=2, evaluate={"central-every": 0}).run(arrays(0.0))
    assert [e.central for e in recorder.of(RoundFinished)] == [None, None]


class Costly(InProcessGrid):
    """A grid whose messages cost time: a round's evaluation goes out with the next training."""

    costs_time = True


def fails_in_round(phase: Phase, calls: int) -> Behaviour:
    """Clients that fail in this phase from the given call on, and else add 1."""
    seen: list[int] = []

    def behave(partition: int, asked: Phase) -> float:
        if asked == phase:
            seen.append(partition)
            if len(seen) > calls:
                raise ValueError("no more")
        return 1.0

    return behave


def test_a_round_is_finished_with_its_evaluation_although_the_next_training_fails(
    recorder: Any,
) -> None:
    base = federation(recorder, rounds=3)
    exchange = Exchange(Costly(clients_that(fails_in_round("train", 4)), 4), 0.0, recorder)
    with pytest.raises(RoundError, match="round 2: 0 of 4 clients succeeded, 1 needed"):
        replace(base, exchange=exchange).run(arrays(0.0))
    (finished,) = recorder.of(RoundFinished)
    assert (finished.round, finished.federated) == (1, {"loss": pytest.approx(1.0)})


@pytest.mark.parametrize("phase", ["train", "evaluate"])
@pytest.mark.parametrize("grid", [InProcessGrid, Costly])
def test_a_strategy_that_fails_to_configure_a_phase_is_named(
    recorder: Any, grid: type[InProcessGrid], phase: str
) -> None:
    class Failing(FedAvg):
        def configure_train(self, server_round: int, *given: Any) -> Any:
            if phase == "train" and server_round == 2:
                raise ValueError("so it is")
            return super().configure_train(server_round, *given)

        def configure_evaluate(self, server_round: int, *given: Any) -> Any:
            if phase == "evaluate" and server_round == 2:
                raise ValueError("so it is")
            return super().configure_evaluate(server_round, *given)

    base = federation(recorder, rounds=3, strategy=Failing(1.0, 1.0, 1, 1, 1))
    exchange = Exchange(grid(clients_that(lambda p, m: 1.0), 4), 0.0, recorder)
    with pytest.raises(RunError, match="^round 2: strategy fedavg: ValueError: so it is"):
        replace(base, exchange=exchange).run(arrays(0.0))
    assert [e.round for e in recorder.of(RoundFinished)] == [1]


def test_a_round_without_a_client_says_that_none_was_sampled(recorder: Any) -> None:
    class Nobody(FedAvg):
        def configure_train(self, *_: Any) -> Any:
            return []

    base = federation(recorder, strategy=Nobody())
    with pytest.raises(RoundError, match="^round 1: the strategy sampled no client, 1 needed$"):
        base.run(arrays(0.0))


def test_no_model_of_a_client_is_kept_after_its_round(recorder: Any) -> None:
    kept: list[Any] = []

    class Keeping(Exchange):
        def post(self, *given: Any, **named: Any) -> Any:
            if kept:
                assert [len(replies.models) for replies in kept] == [0] * len(kept)
            kept.append(super().post(*given, **named))
            return kept[-1]

    exchange = Keeping(InProcessGrid(clients_that(lambda p, m: 1.0), 4), 0.0, recorder)
    replace(federation(recorder, rounds=3), exchange=exchange).run(arrays(0.0))
    assert [replies.phase for replies in kept] == ["train", "evaluate"] * 3
    assert [len(replies.metrics) for replies in kept] == [4] * 6


def towards(recorder: Any, target: float, reached_in: int, costs_time: bool = False) -> Any:
    """Five rounds at most with a test accuracy of round / 10, or none where that is 0."""
    base = federation(recorder, rounds=5, evaluate={"target-accuracy": target})
    grid = Costly if costs_time else InProcessGrid
    exchange = Exchange(grid(clients_that(lambda p, m: 1.0), 4), 0.0, recorder)
    judge = lambda _, record: {"accuracy": float(record["w"].numpy()[0]) / 10} if reached_in else {}  # noqa: E731
    return Rounds(base.experiment, base.strategy, exchange, judge, recorder)


@pytest.mark.parametrize("costs_time", [False, True])
def test_a_run_ends_with_the_round_that_reaches_the_target(recorder: Any, costs_time: bool) -> None:
    ended = towards(recorder, 0.3, 3, costs_time).run(arrays(0.0))  # each round adds 1
    rounds = recorder.of(RoundFinished)
    assert [line.round for line in rounds] == [1, 2, 3]
    assert (ended.round, ended.arrays["w"].numpy().tolist()) == (3, [3.0, 3.0])
    assert rounds[-1].central == {"accuracy": pytest.approx(0.3)}
    assert rounds[-1].federated == {"loss": pytest.approx(1.0)}
    assert set(ended.evaluated.cohort) == {0, 1, 2, 3}


def test_a_target_that_is_not_reached_changes_nothing(recorder: Any) -> None:
    assert towards(recorder, 0.9, 9).run(arrays(0.0)).round == 5


def test_a_target_that_nothing_can_reach_is_refused(recorder: Any) -> None:
    with pytest.raises(RunError, match=r"target-accuracy is 0\.5, but the model logs no accuracy"):
        towards(recorder, 0.5, 0).run(arrays(0.0))


class Refusing(FedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        raise ValueError("too few results for me")


class Exploding(FedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return arrays(float("inf")), None


class Losing(FedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return None, None


@pytest.mark.parametrize(
    ("strategy", "error", "part"),
    [
        (Refusing(), RunError, "round 1: strategy fedavg: ValueError: too few results for me"),
        (Exploding(), RunError, "round 1: the aggregated weights w are not finite"),
        (Losing(), RoundError, "round 1: the strategy returned no model for 4 results"),
    ],
)
def test_a_strategy_that_fails_stops_the_run(
    recorder: Any, strategy: FedAvg, error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        federation(recorder, strategy=strategy, rounds=1).run(arrays(0.0))


def test_buffers_are_averaged_whatever_the_strategy_makes_of_them(recorder: Any) -> None:
    shown: list[set[str]] = []

    class Doubling(FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            shown.append(set(arrays))
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            shown.extend(set(reply.content["arrays"]) for reply in replies)
            return ArrayRecord({"w": Array(np.float32([9, 9])), "n": Array(np.float32([9]))}), None

    def rounds(buffers: frozenset[str]) -> ArrayRecord:
        base = federation(recorder, strategy=Doubling())
        both = Rounds(base.experiment, base.strategy, base.exchange, base.judge, recorder, buffers)
        return both.run(arrays(10.0))[0]

    assert rounds(frozenset())["w"].numpy().tolist() == [9, 9]
    assert shown == [{"w"}] * 5  # the model that is sent, and four results
    shown.clear()
    # 10 + (0 x 1 + 1 x 2 + 2 x 3 + 3 x 4) / 10 = 12, and the rest stays the strategy's
    # (every client still gets the whole model: it could not add to "w" otherwise)
    assert rounds(frozenset({"w"}))["w"].numpy().tolist() == pytest.approx([12, 12])
    assert shown == [set()] * 5
    assert rounds(frozenset({"w"}))["n"].numpy().tolist() == [9]


def test_the_models_types_stay_what_the_clients_send(recorder: Any) -> None:
    class Wide(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return ArrayRecord(
                {"w": Array(np.float64([1.25, 2.5])), "n": Array(np.asarray(6.6))}
            ), None

    def behave(partition: int, phase: Phase) -> float:
        return 1.0

    start = ArrayRecord({"w": Array(np.zeros(2, np.float32)), "n": Array(np.asarray(5))})
    base = federation(recorder, behave, strategy=Wide())
    typed = with_types_of(Wide().aggregate_train(1, [])[0], start)
    assert (typed["w"].dtype, typed["w"].numpy().tolist()) == ("float32", [1.25, 2.5])
    assert (typed["n"].dtype, typed["n"].numpy().tolist()) == ("int64", 7)
    final, *_ = Rounds(base.experiment, Wide(), base.exchange, base.judge, recorder).run(
        arrays(0.0)
    )
    assert final["w"].dtype == "float32"


@pytest.mark.parametrize("own", [True, False])
def test_a_metric_that_only_some_clients_report_is_averaged_over_these(
    recorder: Any, own: bool
) -> None:
    shown: list[set[str]] = []

    class Looking(FedAvg):
        def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
            shown.extend({*reply.content["metrics"]} for reply in replies)
            return super().aggregate_evaluate(server_round, replies)

    strategy = Looking(1.0, 1.0, 1, 1, 1) if own else None
    base = federation(recorder, rounds=2, strategy=strategy)
    clients = clients_that(lambda p, m: 1.0, more={1: {"f1": 0.5}, 2: {"f1": 1.0}})
    exchange = Exchange(InProcessGrid(clients, 4), 0.0, recorder)
    rounds = Rounds(base.experiment, base.strategy, exchange, base.judge, recorder)
    rounds.run(arrays(0.0))
    # clients 1 and 2 have 2 and 3 examples
    expected = {"loss": 1.0, "f1": pytest.approx((2 * 0.5 + 3 * 1.0) / 5)}
    for finished in recorder.of(RoundFinished):
        assert (finished.federated, finished.train) == (expected, expected)
    assert [event.text for event in recorder.of(Noticed)] == [
        "f1 is not defined for client 0 (the module did not log it there) and 1 more client; "
        "left out there"
    ]
    assert all(names == {"num-examples", "loss", "seconds"} for names in shown)
    assert len(shown) == (8 if own else 0)


def test_the_digest_depends_on_names_shapes_types_and_values_not_on_order() -> None:
    one, two = Array(np.ones(2, np.float32)), Array(np.zeros(2, np.float32))
    digest = weights_sha256(ArrayRecord({"a": one, "b": two}))
    assert digest == weights_sha256(ArrayRecord({"b": two, "a": one}))
    assert digest != weights_sha256(ArrayRecord({"a": two, "b": one}))
    assert digest != weights_sha256(ArrayRecord({"a": one, "c": two}))
    assert weights_sha256(arrays(0.0)) != weights_sha256(arrays(0.0, np.float64))


def test_the_first_array_that_diverged_is_named() -> None:
    after, mask = np.array([0.0, np.nan]), np.array([0.0, -np.inf])
    record = ArrayRecord({"n": Array(np.array([1])), "mask": Array(mask), "w": Array(after)})
    finite = ArrayRecord({**record, "w": Array(np.zeros(2))})
    assert first_diverged(record, finite) == "w"
    assert first_diverged(finite, finite) is None
    assert first_diverged(record, record) is None
    assert first_diverged(finite, ArrayRecord({**finite, "mask": Array(np.zeros(2))})) == "mask"
