"""Messages over Flower's grid that are rejected, or that nobody will answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from flsimulation.clock import VirtualClock
from flsimulation.errors import ClientError
from flsimulation.experiment import load_experiment
from flsimulation.internals.flower_messages import empty_run, set_message_id
from flsimulation.internals.flower_replies import HttpGrid, Refused, pull_replies
from flsimulation.messages.codec import failure_of
from flsimulation.messages.content import identity_reply
from flsimulation.node.assignment import PartitionTable
from flsimulation.node.grid import AssignedGrid
from flsimulation.node.outbox import Outbox
from flsimulation.runtimes.simulated import flower_identity

Returns = Callable[[str], list[Any]]

REJECTIONS: dict[str, Returns] = {
    "an empty id": lambda _: [""],
    "None": lambda _: [None],
    "no id at all": lambda _: [],
}


class Rejecting(Grid):
    """Flower's grid of some nodes, which rejects the messages to some of them."""

    def __init__(self, nodes: Iterable[int], returns: Returns) -> None:
        self.nodes, self.returns = list(nodes), returns
        self.rejects: set[int] = set()
        self.sent: list[Message] = []
        self.pulled: list[list[str]] = []

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = []
        for message in messages:
            identifier = f"id-{len(self.sent)}"
            if message.metadata.dst_node_id in self.rejects:
                identifiers += self.returns(identifier)
                continue
            set_message_id(message, identifier)
            self.sent.append(message)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Every node answers at once, and says who it is."""
        self.pulled.append(list(message_ids))
        found = [m for m in self.sent if m.metadata.message_id in self.pulled[-1]]
        self.sent = [m for m in self.sent if m not in found]
        return [identity_reply(m, f"client-{m.metadata.dst_node_id}", None) for m in found]

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with flower_identity():
        yield


@pytest.fixture(params=REJECTIONS)
def flower(request: pytest.FixtureRequest) -> Rejecting:
    return Rejecting([10, 11], REJECTIONS[request.param])


def messages(*nodes: int, ttl: float | None = None) -> list[Message]:
    return [Message(RecordDict(), node, "train", ttl=ttl) for node in nodes]


def told(answers: Iterable[Message]) -> dict[str, ClientError | None]:
    return {a.metadata.reply_to_message_id: failure_of(a) for a in answers}


def test_a_rejected_message_is_answered_as_lost_and_the_others_by_their_nodes(
    flower: Rejecting,
) -> None:
    outbox = Outbox(flower)
    flower.rejects = {10}
    rejected, sent = outbox.push(messages(10, 11))
    assert (outbox.node_of(rejected), outbox.node_of(sent)) == (10, 11)
    found = told(outbox.pull({rejected, sent}))
    why = found.pop(rejected)
    assert found == {sent: None}
    assert why is not None
    assert (why.reason, str(why)) == (
        "lost",
        "the SuperLink rejected its message; the SuperLink's log says why",
    )
    assert flower.pulled == [[sent]]  # Flower is not asked for an id that it does not know
    assert outbox.pull({rejected, sent}) == []


def test_two_rejected_messages_are_two(flower: Rejecting) -> None:
    outbox = Outbox(flower)
    flower.rejects = {10, 11}
    identifiers = outbox.push(messages(10, 11))
    assert len(set(identifiers)) == 2
    assert sorted(told(outbox.pull(set(identifiers)))) == sorted(identifiers)
    assert flower.pulled == []


def test_who_could_not_be_asked_who_it_is_is_asked_again(flower: Rejecting) -> None:
    spec = load_experiment(None, ["data.examples-per-client=50"])
    grid = AssignedGrid(flower, PartitionTable(2), spec, lambda _: None)
    flower.rejects = {11}
    grid.look()
    assert grid.partitions == {10: 0}
    flower.rejects = set()
    vars(grid)["_looked"] = float("-inf")  # as half a second later
    grid.look()
    assert grid.partitions == {10: 0, 11: 1}


def test_a_rejected_message_ends_its_clients_part_in_the_phase_at_once(flower: Rejecting) -> None:
    spec = load_experiment(None, ["data.examples-per-client=50"])
    grid = AssignedGrid(flower, PartitionTable(2), spec, lambda _: None)
    grid.look()
    flower.rejects = {11}
    sent, rejected = grid.push_messages(messages(10, 11))
    found = told(grid.pull_messages())
    assert found.keys() == {sent, rejected}
    assert found[sent] is None
    assert found[rejected] is not None
    assert list(grid.pull_messages(reply_to_message_ids=[sent, rejected])) == []


def test_an_answer_that_never_comes_ends_a_minute_after_the_messages_life() -> None:
    flower = Rejecting([10], REJECTIONS["None"])
    clock = VirtualClock(time.time())  # by which Flower dates messages
    outbox = Outbox(flower, clock)
    (identifier,) = outbox.push(messages(10, ttl=100.0))
    flower.sent.clear()  # its parts were not there: Flower 1.43 logs that and goes on
    clock.sleep(159)
    assert outbox.pull({identifier}) == []
    clock.sleep(2)
    why = told(outbox.pull({identifier}))[identifier]
    assert why is not None
    assert (why.reason, str(why)) == (
        "lost",
        "no reply arrived within its message's time to live, 100 s",
    )


def test_messages_of_several_pushes_are_on_their_way_until_nobody_waits(
    flower: Rejecting,
) -> None:
    outbox = Outbox(flower)
    flower.rejects = {10, 11}
    (first,), (second,), (third,) = (outbox.push(messages(node)) for node in (10, 11, 12))
    assert len({first, second, third}) == 3
    assert [outbox.node_of(identifier) for identifier in (first, second, third)] == [10, 11, 12]
    outbox.keep({second, third})
    assert (outbox.node_of(first), outbox.identifiers) == (None, {second, third})
    assert told(outbox.pull({first, second, third})).keys() >= {second}
    assert told(outbox.pull({first})).keys() == set()


class Stored:
    """A SuperLink's side of the Runtime API: replies as nodes stored them."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.messages: list[Any] = []
        self.trees: list[Any] = []
        self.confirmed: list[str] = []

    def store(self, reply: Message, *, named: Message | None = None) -> None:
        """Store a reply; its node said that it replies to what ``named`` does."""
        set_message_id(reply, reply.object_id)
        self.objects |= {i: o.deflate() for i, o in get_all_nested_objects(reply).items()}
        proto = message_to_proto(remove_content_from_message(reply))
        if named is not None:
            proto.metadata.reply_to_message_id = named.metadata.message_id
        self.messages.append(proto)
        self.trees.append(get_object_tree(reply))

    def PullMessages(self, _: Any) -> Any:  # noqa: N802 - Flower's name
        return PullAppMessagesResponse(messages_list=self.messages, message_object_trees=self.trees)

    def PullObject(self, request: Any) -> Any:  # noqa: N802 - Flower's name
        content = self.objects.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None, object_available=True, object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802 - Flower's name
        self.confirmed.append(request.message_object_id)


def pulled(largest: int, change: Callable[[Stored, Message, Message], None]) -> list[Any]:
    """What is pulled from a SuperLink with the reply of one node to one of two messages."""
    stored, grid = Stored(), HttpGrid(token="t")
    grid.set_run(empty_run(1))
    vars(grid)["_client"] = stored
    mine, others = messages(10, 11)
    for message, identifier in ((mine, "mine"), (others, "others")):
        set_message_id(message, identifier)
    change(stored, mine, others)
    return [
        found if isinstance(found, Refused) else (*told([found]).items(),)
        for found in pull_replies(grid, ["mine", "others"], largest)
    ]


def sound(message: Message) -> Message:
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(1000))})})
    return Message(content, reply_to=message)


def damaged(stored: Stored, mine: Message, _: Message) -> None:
    stored.store(sound(mine))
    (whole,) = (i for i, content in stored.objects.items() if content.startswith(b"Array "))
    stored.objects[whole] = b"Array  4\x00null"


@pytest.mark.parametrize(
    ("largest", "change", "expected"),
    [
        (10_000, lambda s, mine, _: s.store(sound(mine)), [(("mine", None),)]),
        (
            8000,
            lambda s, mine, _: s.store(sound(mine)),
            [Refused("mine", "its reply is larger than 8,000 bytes")],
        ),
        (
            10_000,
            lambda s, mine, others: s.store(sound(others), named=mine),
            [Refused("mine", "its reply names another client's message")],
        ),
        (10_000, damaged, [Refused("mine", "its reply cannot be read: TypeError")]),
    ],
)
def test_a_reply_is_read_only_if_it_is_sound(
    largest: int, change: Any, expected: list[Any]
) -> None:
    assert pulled(largest, change) == expected


def test_a_reply_that_cannot_be_unpacked_is_rejected(flower: Rejecting) -> None:
    outbox = Outbox(flower)
    (identifier,) = outbox.push(messages(10))
    packed = RecordDict({"flsim-packed": ConfigRecord({"json": "[" * 10_000})})
    flower.pull_messages = lambda _: [Message(packed, reply_to=flower.sent[0])]  # type: ignore[method-assign]
    (error,) = told(outbox.pull({identifier})).values()
    assert error is not None
    assert error.reason == "rejected"
    assert str(error).startswith("its reply cannot be read: RecursionError")


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"identity": ConfigRecord({"trouble": "no name"})}),
        RecordDict({"identity": ConfigRecord({"name": "berlin", "partition-id": "zero"})}),
        RecordDict({"identity": ArrayRecord()}),
    ],
)
def test_a_node_that_does_not_say_its_name_gets_no_partition(
    flower: Rejecting, content: RecordDict
) -> None:
    experiment = load_experiment(overrides=["data.clients=1"])
    grid = AssignedGrid(flower, PartitionTable(1), experiment, lambda _: None, clock=VirtualClock())
    flower.pull_messages = lambda _: [Message(content, reply_to=m) for m in flower.sent]  # type: ignore[method-assign]
    assert not grid.wait(1, 1.0)
    assert "the query for its name" in grid.trouble
