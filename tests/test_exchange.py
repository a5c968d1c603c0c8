"""Posting tasks and taking outcomes, whoever calls the two and in whatever way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from flsimulation.errors import ClientError
from flsimulation.events import ClientReplied, EngineReported, Phase, PhaseStarted
from flsimulation.messages.batch import Batch, Mean, Outcome, Reply, Task
from flsimulation.runtimes.inprocess import InProcessGrid
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.server.aggregation import Aggregation
from flsimulation.server.exchange import Exchange

CONFIG = ConfigRecord({"server-round": 1})


def model(*values: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.float32(values))})


class Clients:
    """Do as they are told; what they were asked is kept."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, str]]] = []
        self.engine: dict[int, tuple[str, str | None]] = {}
        self.outcome = self.one

    def __call__(self, batch: Batch) -> Iterator[Reply]:
        self.batches.append([(task.partition, task.phase) for task in batch.tasks])
        for task in batch.tasks:
            outcome = self.outcome(task)
            if task.phase == "train":
                outcome = outcome._replace(model=batch.model)
            yield Reply([outcome], None, *self.engine.get(task.partition, ()))

    @staticmethod
    def one(task: Task) -> Outcome:
        return Outcome(task.partition, task.phase, {"num-examples": task.partition + 1})


class Costly(InProcessGrid):
    """Messages take time, so that there should be few: one for each client."""

    @property
    def costs_time(self) -> bool:
        return True

    def divided(self, batch: Batch) -> Iterator[tuple[int | None, Batch]]:
        for partition in sorted({task.partition for task in batch.tasks}):
            own = [task for task in batch.tasks if task.partition == partition]
            yield self.node_of(partition), replace(batch, tasks=own)


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with flower_identity():
        yield


@pytest.fixture
def clients() -> Clients:
    return Clients()


def tasks(phase: Phase, *partitions: int, round: int = 1) -> list[Task]:
    return [Task(partition, phase, round, CONFIG) for partition in partitions]


def exchange_of(clients: Clients, recorder: Any, kind: Any = InProcessGrid, **known: Any) -> Any:
    return Exchange(kind(clients, 9), 0.0, recorder, **known)


def test_outcomes_come_one_by_one_and_the_replies_are_filled(
    clients: Clients, recorder: Any
) -> None:
    exchange = exchange_of(clients, recorder)
    replies = exchange.post(1, "train", [Batch(model(0.0), tasks("train", 2, 0))])
    assert (replies.cohort, replies.missing, replies.is_complete) == ((0, 2), [0, 2], False)
    known = [([o.partition for o in r.outcomes], replies.missing) for r in exchange.outcomes()]
    assert known == [([2], [0]), ([0], [])]
    assert replies.metrics == {0: {"num-examples": 1}, 2: {"num-examples": 3}}
    assert clients.batches == [[(2, "train"), (0, "train")]]


def test_whoever_has_enough_posts_more_and_the_rest_comes_later(
    clients: Clients, recorder: Any
) -> None:
    """Asynchronous buffering: a new model after two outcomes, the slow ones are not waited for."""
    exchange = exchange_of(clients, recorder, Costly)
    first = exchange.post(1, "train", [Batch(model(0.0), tasks("train", 0, 1, 2))])
    coming = exchange.outcomes()
    next(coming), next(coming)
    assert first.missing == [2]
    second = exchange.post(2, "train", [Batch(model(1.0), tasks("train", 0, 1, round=2))])
    assert [o.partition for reply in coming for o in reply.outcomes] == [2, 0, 1]
    assert first.is_complete
    assert second.is_complete
    told = [(e.round, e.partition) for e in recorder.of(ClientReplied)]
    assert told == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("kind", "messages", "order"),
    [
        (
            Costly,
            [[(0, "evaluate"), (0, "train")], [(1, "evaluate")], [(2, "train")]],
            ["PhaseStarted", "PhaseStarted"],
        ),
        (
            InProcessGrid,
            [[(0, "evaluate"), (1, "evaluate")], [(0, "train"), (2, "train")]],
            ["PhaseStarted", "ClientReplied", "ClientReplied", "PhaseStarted"],
        ),
    ],
)
def test_tasks_that_can_wait_share_the_next_ones_messages_where_these_cost_time(
    clients: Clients, recorder: Any, kind: Any, messages: list[Any], order: list[str]
) -> None:
    exchange, shared = exchange_of(clients, recorder, kind), model(0.0)
    batch = Batch(shared, tasks("evaluate", 0, 1))
    evaluated = exchange.post(1, "evaluate", [batch], can_wait=True)
    list(exchange.outcomes())
    assert evaluated.is_complete is (kind is InProcessGrid)
    trained = exchange.post(2, "train", [Batch(shared, tasks("train", 0, 2, round=2))])
    list(exchange.outcomes())
    assert clients.batches == messages
    assert (evaluated.missing, trained.missing) == ([], [])
    assert [type(event).__name__ for event in recorder.events][: len(order)] == order
    model_and_settings = shared.count_bytes() + CONFIG.count_bytes()
    own = 1 if kind is Costly else 2  # client 0 then gets the model once, for its training
    assert trained.bytes_down == 2 * model_and_settings
    assert evaluated.bytes_down == own * shared.count_bytes() + 2 * CONFIG.count_bytes()


def test_tasks_that_begin_with_another_model_have_messages_of_their_own(
    clients: Clients, recorder: Any
) -> None:
    exchange = exchange_of(clients, recorder, Costly)
    exchange.post(1, "evaluate", [Batch(model(0.0), tasks("evaluate", 0))], can_wait=True)
    exchange.post(2, "train", [Batch(model(1.0), tasks("train", 0, round=2))])
    list(exchange.outcomes())
    assert clients.batches == [[(0, "evaluate")], [(0, "train")]]


def test_a_phase_that_can_wait_does_not_wait_for_another_of_its_kind(
    clients: Clients, recorder: Any
) -> None:
    exchange = exchange_of(clients, recorder, Costly)
    first = exchange.post(1, "evaluate", [Batch(model(0.0), tasks("evaluate", 0))], can_wait=True)
    second = exchange.post(2, "evaluate", [Batch(model(1.0), tasks("evaluate", 0))], can_wait=True)
    list(exchange.outcomes())
    assert (first.missing, second.missing) == ([], [0])


def test_a_partition_that_nobody_holds_is_lost_at_once(clients: Clients, recorder: Any) -> None:
    class Sparse(Costly):
        def divided(self, batch: Batch) -> Iterator[tuple[int | None, Batch]]:
            for node, part in super().divided(batch):
                yield (None if part.tasks[0].partition == 1 else node), part

    exchange = exchange_of(clients, recorder, Sparse)
    replies = exchange.post(1, "train", [Batch(model(0.0), tasks("train", 0, 1))])
    outcomes = [outcome for reply in exchange.outcomes() for outcome in reply.outcomes]
    assert sorted(outcome.partition for outcome in outcomes) == [0, 1]
    assert {p: (e.reason, str(e)) for p, e in replies.failures.items()} == {
        1: ("lost", "it is not connected")
    }
    assert clients.batches == [[(0, "train")]]


def test_what_flower_reports_in_place_of_a_client_fails_all_its_tasks(
    clients: Clients, recorder: Any
) -> None:
    from flsimulation.messages.codec import failed_reply

    class Broken(Costly):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            lost = ClientError("lost", "no space")
            return [failed_reply(self._waiting[identifier], lost) for identifier in message_ids]

    exchange, shared = exchange_of(clients, recorder, Broken), model(0.0)
    evaluated = exchange.post(1, "evaluate", [Batch(shared, tasks("evaluate", 0))], can_wait=True)
    trained = exchange.post(2, "train", [Batch(shared, tasks("train", 0))])
    assert [len(reply.outcomes) for reply in exchange.outcomes()] == [2]
    assert str(evaluated.failures[0]) == str(trained.failures[0]) == "no space"
    assert trained.bytes_up == 0


def test_a_mean_counts_as_many_bytes_as_the_models_that_it_stands_for(recorder: Any) -> None:
    mean = model(1.0, 2.0)

    def answer(batch: Batch) -> Iterator[Reply]:
        done = [Outcome(t.partition, t.phase, {"num-examples": 10}) for t in batch.tasks]
        failed = Outcome(3, "train", {}, ClientError("error", "boom"))
        yield Reply([*done[:3], failed], Mean(mean, 30))

    exchange = Exchange(InProcessGrid(answer, 4, averages=True), 0.0, recorder)
    replies = exchange.post(1, "train", [Batch(mean, tasks("train", 0, 1, 2, 3), average=True)])
    list(exchange.outcomes())
    numbers = MetricRecord({"num-examples": 10}).count_bytes()
    assert replies.bytes_up == 3 * (mean.count_bytes() + numbers)
    assert [(first, own.weight) for first, own in replies.means.items()] == [(0, 30)]
    assert replies.means[0].model["w"].numpy().tolist() == [1.0, 2.0]
    assert replies.models == {}


def test_means_and_single_models_are_averaged_by_examples(recorder: Any) -> None:
    """Some places average what they trained, others cannot."""

    def answer(batch: Batch) -> Iterator[Reply]:
        first, second, third = (
            Outcome(t.partition, "train", {"num-examples": 10, "loss": float(t.partition)})
            for t in batch.tasks
        )
        yield Reply([third._replace(model=model(9.0))])
        yield Reply([first, second], Mean(model(3.0), 20))

    exchange = Exchange(InProcessGrid(answer, 3, averages=True), 0.0, recorder)
    replies = exchange.post(1, "train", [Batch(model(0.0), tasks("train", 0, 1, 2), average=True)])
    list(exchange.outcomes())
    strategy = FedAvg()
    arrays, metrics = Aggregation(strategy, "fedavg", frozenset()).aggregate(1, replies, model(0.0))
    assert arrays["w"].numpy().tolist() == [5.0]  # (20 x 3 + 10 x 9) / 30
    assert metrics is not None
    assert dict(metrics) == {"loss": pytest.approx(1.0)}


def test_an_engine_that_was_not_known_is_reported_once(clients: Clients, recorder: Any) -> None:
    batchnorm = "BatchNorm1d keeps running statistics"
    clients.engine = {1: ("stacked", None), 2: ("lightning", batchnorm)}
    exchange = exchange_of(clients, recorder, engine="stacked")
    for round in (1, 2):
        exchange.post(round, "train", [Batch(model(0.0), tasks("train", 0, 1, 2, round=round))])
        list(exchange.outcomes())
    assert recorder.of(EngineReported) == [EngineReported("lightning", batchnorm)]
    names = [type(event).__name__ for event in recorder.events]
    assert names[:5] == ["PhaseStarted", *["ClientReplied"] * 2, "EngineReported", "ClientReplied"]


def test_a_phase_without_tasks_is_over_at_once(clients: Clients, recorder: Any) -> None:
    exchange = exchange_of(clients, recorder, Costly)
    replies = exchange.post(1, "evaluate", [], can_wait=True)
    assert replies.is_complete
    assert recorder.of(PhaseStarted) == [PhaseStarted(1, "evaluate", ())]
    assert list(exchange.outcomes()) == []
