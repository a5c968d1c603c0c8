"""Answers of several clients in one message."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from flsimulation.errors import ClientError
from flsimulation.messages.batch import bundle, cohort_answer, cohort_reply, merged, unbundle
from flsimulation.messages.content import failure, failure_of, metrics_of, reply, state_of
from flsimulation.runtimes.inprocess import flower_identity


@pytest.fixture
def messages() -> Iterator[list[Message]]:
    """To three nodes, with ids as a grid sets them."""
    with flower_identity():
        content = RecordDict({"config": ConfigRecord()})
        made = [Message(content, node, MessageType.TRAIN) for node in (2, 3, 4)]
        for number, message in enumerate(made):
            vars(message.metadata)["_message_id"] = f"m{number}"
        yield made


def together(message: Message, value: float, examples: int, **losses: float) -> Message:
    metrics = {int(p[1:]): {"loss": loss} for p, loss in losses.items()}
    return cohort_reply(message, metrics, {}, {"w": torch.tensor([value])}, examples)


def test_merged_answers_hold_the_mean_weighted_by_examples(messages: list[Message]) -> None:
    failed = cohort_reply(messages[2], {}, {2: ClientError("deadline", "too late")}, {}, 0)
    parts = [together(messages[0], 1.0, 30, p0=0.5), together(messages[1], 5.0, 10, p1=1.5), failed]
    (one,) = merged(messages[0], parts)
    answer = cohort_answer(one)
    assert answer is not None
    assert answer.metrics == {0: {"loss": 0.5}, 1: {"loss": 1.5}}
    assert {p: (e.reason, str(e)) for p, e in answer.failures.items()} == {
        2: ("deadline", "too late")
    }
    assert answer.examples == 40
    assert answer.mean is not None
    mean = answer.mean["w"].numpy()
    assert (mean.tolist(), str(mean.dtype)) == ([2.0], "float32")  # (30 x 1 + 10 x 5) / 40
    assert one.metadata.reply_to_message_id == "m0"


def test_answers_with_other_names_stay_apart_for_the_server_to_see(messages: list[Message]) -> None:
    odd = cohort_reply(messages[1], {1: {"f1": 0.5}}, {}, {"w": torch.tensor([1.0])}, 1)
    parts = [together(messages[0], 1.0, 30, p0=0.5), odd]
    assert merged(messages[0], parts) == parts
    single = [reply(messages[0], {"loss": 1.0})]
    assert merged(messages[0], single) == single


def test_a_bundle_gives_each_answer_back_to_its_own_message(messages: list[Message]) -> None:
    answers = {
        7: reply(messages[0], {"loss": 1.0}, {"w": torch.tensor([3.0])}),
        8: failure(messages[0], ClientError("diverged", "its loss is nan")),
    }
    held = bundle(messages[0], answers)
    first, second = unbundle(held, {7: messages[1], 8: messages[2]})
    assert (first.metadata.reply_to_message_id, second.metadata.reply_to_message_id) == ("m1", "m2")
    assert (first.metadata.src_node_id, second.metadata.src_node_id) == (3, 4)
    assert metrics_of(first) == {"loss": 1.0}
    assert state_of(first)["w"].tolist() == [3.0]
    error = failure_of(second)
    assert error is not None
    assert (error.reason, str(error)) == ("diverged", "its loss is nan")
