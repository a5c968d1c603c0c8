"""Batches and replies as messages: what is written is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from flsimulation.errors import ClientError
from flsimulation.host.warned import NOBODY, TEST_SET, Warned
from flsimulation.messages.batch import (
    Batch,
    Mean,
    Outcome,
    Reply,
    Task,
    batch_bytes,
    joined,
    outcome_bytes,
)
from flsimulation.messages.codec import batch_of, failed_reply, message_of, reply_of, reply_to
from flsimulation.messages.packing import pack, unpack
from flsimulation.messages.state_dicts import record_of
from flsimulation.runtimes.simulated import flower_identity

SETTINGS, OTHERS = ConfigRecord({"server-round": 3, "proximal-mu": 0.5}), ConfigRecord({"a": True})


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with flower_identity():
        yield


def model(value: float, dtype: Any = np.float32) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full(2, value, dtype))})


def values(record: ArrayRecord | None) -> list[float]:
    assert record is not None
    found: list[float] = record["w"].numpy().tolist()
    return found


TASKS = [
    Task(7, "evaluate", 3, OTHERS),
    Task(7, "train", 4, SETTINGS),
    Task(2, "train", 4, SETTINGS),
    Task(9, "final", 4, ConfigRecord()),
]


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_is_read_as_it_was_written(packed: bool) -> None:
    message = message_of(Batch(model(1.5), TASKS, average=True), node=12)
    if packed:
        message.content = unpack(pack(message.content, {}))
    batch = batch_of(message)
    assert [task[:3] for task in batch.tasks] == [task[:3] for task in TASKS]
    assert [dict(task.config) for task in batch.tasks] == [dict(task.config) for task in TASKS]
    assert (values(batch.model), batch.average, batch.expires) == ([1.5, 1.5], True, None)
    assert message.metadata.dst_node_id == 12


def test_in_one_process_the_model_and_the_settings_are_not_copied() -> None:
    held = Batch(model(1.0), TASKS)
    batch = batch_of(message_of(held, 2))
    assert batch.model is held.model
    assert batch.tasks[1].config is batch.tasks[2].config is SETTINGS


@pytest.mark.parametrize(
    ("tasks", "kind"), [(TASKS, "train"), (TASKS[:1], "evaluate"), (TASKS[3:], "evaluate")]
)
def test_a_message_is_of_training_if_one_task_is(tasks: list[Task], kind: str) -> None:
    assert message_of(Batch(model(0.0), tasks), 2).metadata.message_type == kind


def test_a_deadline_travels_as_the_messages_time_to_live() -> None:
    message = message_of(Batch(model(0.0), TASKS), 2, seconds=30.0)
    assert message.metadata.ttl == 30.0
    assert batch_of(message).expires == message.metadata.created_at + 30.0


OUTCOMES = [
    Outcome(
        7, "evaluate", {"loss": 0.25, "num-examples": 4}, None, None, model(8.0), {"f1": "NaN"}
    ),
    Outcome(3, "evaluate", {"loss": 0.5, "num-examples": 4}, None, None, model(9.0)),
    Outcome(4, "evaluate", {"loss": 0.5, "num-examples": 4}, None, None, None, {"a": "b", "c": ""}),
    Outcome(7, "train", {"loss": math.inf, "num-examples": 30}, None, model(7.0)),
    Outcome(2, "train", {"loss": 1.0, "f1": 0.5, "num-examples": 10}, None, model(2.0)),
    Outcome(5, "train", {"loss": 2, "num-examples": 20}, None, model(5.0)),  # an integer stays one
    Outcome(9, "final", {}, ClientError("diverged", "its loss is nan")),
    Outcome(2, "evaluate", {}, ClientError("deadline", "too late")),
]


def told(outcome: Outcome) -> tuple[Any, ...]:
    error = outcome.error
    weights = None if outcome.model is None else values(outcome.model)
    numbers = [(name, value, type(value)) for name, value in outcome.metrics.items()]
    failed = error and (error.reason, str(error))
    states = None if outcome.states is None else values(outcome.states)
    left_out = dict(outcome.left_out)
    return outcome.partition, outcome.phase, numbers, failed, weights, states, left_out


@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_is_read_as_it_was_written(packed: bool) -> None:
    message = message_of(Batch(model(0.0), TASKS), 2)
    vars(message.metadata)["_message_id"] = "m1"
    answer = reply_to(message, Reply(OUTCOMES, None, "lightning", "BatchNorm1d"))
    if packed:
        answer.content = unpack(pack(answer.content))
    reply = reply_of(answer)
    assert isinstance(reply, Reply)
    assert sorted(map(told, reply.outcomes), key=str) == sorted(map(told, OUTCOMES), key=str)
    assert (reply.mean, reply.engine, reply.why_not) == (None, "lightning", "BatchNorm1d")
    assert answer.metadata.reply_to_message_id == "m1"


@pytest.mark.parametrize(
    "warned", [(), [Warned(3, "a"), Warned(NOBODY, "b"), Warned(TEST_SET, "c")]]
)
def test_warnings_travel_with_a_reply(warned: list[Warned]) -> None:
    message = message_of(Batch(model(0.0), TASKS), 2)
    answer = reply_to(message, Reply([Outcome(2, "evaluate", {"loss": 1.0})], warned=warned))
    answer.content = unpack(pack(answer.content, {}))
    reply = reply_of(answer)
    assert not isinstance(reply, ClientError)
    assert [(own.client, own.line) for own in reply.warned] == [
        (own.client, own.line) for own in warned
    ]


def test_numbers_of_many_clients_travel_as_one_record() -> None:
    many = [Outcome(p, "train", {"loss": p / 4, "num-examples": p}) for p in range(100)]
    message = message_of(Batch(model(0.0), TASKS), 2)
    answer = reply_to(message, Reply(many, Mean(model(3.0), 4950)))
    assert sorted(answer.content) == ["arrays", "metrics-0", "outcomes"]
    records = [r for r in answer.content.values() if isinstance(r, MetricRecord)]
    assert [len(record) for record in records] == [2]
    reply = reply_of(answer)
    assert isinstance(reply, Reply)
    assert list(reply.outcomes) == many
    assert reply.mean is not None
    assert (values(reply.mean.model), reply.mean.weight) == ([3.0, 3.0], 4950)
    assert (reply.engine, reply.why_not) == (None, None)


def test_a_failure_of_the_whole_message_is_an_error_with_its_reason() -> None:
    message = message_of(Batch(model(0.0), TASKS), 2)
    error = reply_of(failed_reply(message, ClientError("lost", "its machine was lost")))
    assert isinstance(error, ClientError)
    assert (error.reason, str(error)) == ("lost", "its machine was lost")


def test_replies_that_are_joined_have_the_mean_weighted_by_examples() -> None:
    done = [Outcome(p, "train", {"loss": 0.5 + p}) for p in range(3)]
    failed = Outcome(3, "train", {}, ClientError("deadline", "too late"))
    parts = [
        Reply(done[:2], Mean(model(1.0), 30)),
        Reply([failed]),
        Reply(done[2:], Mean(model(5.0), 10), "stacked"),
    ]
    one = joined(parts)
    assert list(one.outcomes) == [done[0], done[1], failed, done[2]]
    assert one.mean is not None
    assert values(one.mean.model) == [2.0, 2.0]  # (30 x 1 + 10 x 5) / 40
    assert (one.mean.model["w"].dtype, one.mean.weight) == ("float32", 40)
    assert one.engine == "stacked"
    assert joined([]) == Reply([])
    assert joined([Reply([failed])]).mean is None


def plain(kind: str, config: ConfigRecord = SETTINGS) -> Message:
    return Message(RecordDict({"arrays": model(1.0), "config": config}), 2, kind)


@pytest.mark.parametrize(("kind", "phase"), [("train", "train"), ("evaluate", "evaluate")])
def test_a_message_of_flowers_own_round_loop_is_a_batch_of_one(kind: str, phase: str) -> None:
    batch = batch_of(plain(kind), 4)
    assert batch.tasks == [Task(4, phase, 3, SETTINGS)]  # type: ignore[arg-type]
    assert (values(batch.model), batch.average, batch.expires) == ([1.0, 1.0], False, None)
    assert batch_of(plain(kind, OTHERS), 4).tasks[0].round == 0
    with pytest.raises(ValueError, match="needs the partition of its node"):
        batch_of(plain(kind))


def test_flowers_own_round_loop_gets_the_answers_that_it_knows() -> None:
    message = plain("train")
    answer = reply_to(message, Reply([OUTCOMES[4]], None, "lightning"))
    assert list(answer.content) == ["metrics", "arrays"]
    assert dict(answer.content["metrics"]) == OUTCOMES[4].metrics  # type: ignore[call-overload]
    failed = reply_to(message, Reply([OUTCOMES[6]]))
    assert (failed.has_error(), failed.error.reason) == (True, "its loss is nan")


def test_bytes_are_those_of_each_clients_own_message() -> None:
    held = record_of({"w": torch.zeros(2)})
    task = Task(0, "train", 1, SETTINGS)
    both = Batch(held, [task, Task(0, "evaluate", 1, OTHERS)])
    assert batch_bytes(both) == held.count_bytes() + SETTINGS.count_bytes() + OTHERS.count_bytes()
    metrics = {"num-examples": 3, "loss": 0.5}
    numbers = MetricRecord(dict(metrics)).count_bytes()
    assert outcome_bytes(Outcome(0, "evaluate", dict(metrics))) == numbers
    trained = Outcome(0, "train", dict(metrics), None, held)
    assert outcome_bytes(trained) == numbers + held.count_bytes()
