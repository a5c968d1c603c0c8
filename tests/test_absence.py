"""Clients of a network that go away, come back, or stay silent: what the server knows and says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message
from flwr.common.constant import ErrorCode

from flsimulation.clock import VirtualClock
from flsimulation.events import ClientReplied, ClientsAwaited, ClientsConnected
from flsimulation.experiment import load_experiment
from flsimulation.messages.batch import Batch, Outcome, Reply, Task
from flsimulation.messages.codec import batch_of, reply_to
from flsimulation.messages.content import identity_reply
from flsimulation.messages.packing import is_packed, unpack
from flsimulation.node.assignment import PartitionTable
from flsimulation.node.grid import AssignedGrid
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.server.exchange import Exchange


class Time(VirtualClock):
    """A virtual clock for which events can be planned."""

    def __init__(self) -> None:
        super().__init__(1000.0)
        self.plans: list[tuple[float, Callable[[], None]]] = []

    @property
    def now(self) -> float:
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        due = [plan for plan in self.plans if plan[0] <= self.now]
        self.plans = [plan for plan in self.plans if plan[0] > self.now]
        for _, happen in due:
            happen()

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        self.plans.append((self.now + seconds, happen))


class Nodes:
    """Flower's grid with nodes that answer when they are told to."""

    def __init__(self, clock: Time) -> None:
        self.clock = clock
        self.names: dict[int, str] = {}
        self.troubles: dict[int, str] = {}
        self.silent: set[int] = set()
        self.unregistered: set[int] = set()
        self.deleted: set[int] = set()  # nodes whose training the SuperLink has deleted
        self.back: dict[int, str] = {}  # away only while its reply is requested -> what ended it
        self.messages: dict[str, Message] = {}
        self.answers: dict[str, Message] = {}
        self.asked: list[str] = []

    def join(self, node: int, name: str, trouble: str = "") -> None:
        self.names[node], self.troubles[node] = name, trouble

    def leave(self, node: int, goodbye: bool = False) -> None:
        del self.names[node]
        self.unregistered |= {node} if goodbye else set()

    def get_node_ids(self) -> Iterable[int]:
        return list(self.names)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(str(len(self.messages)))
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.messages[ids[-1]] = message
            self.asked.append(message.metadata.message_type)
        return ids

    def answer(self, node: int) -> None:
        """Answer the node's training."""
        for identifier, message in self.messages.items():
            told = message.metadata
            if told.dst_node_id == node and told.message_type == "train":
                (task,) = batch_of(unpacked(message)).tasks
                metrics = {"num-examples": 1, "loss": 0.5}
                outcome = Outcome(task.partition, task.phase, metrics, None, model())
                self.answers[identifier] = reply_to(unpacked(message), Reply([outcome]))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for identifier in list(message_ids):
            message = self.messages[identifier]
            node = message.metadata.dst_node_id
            if node in self.unregistered:
                yield Message(Error(ErrorCode.NODE_UNAVAILABLE, "Flower's"), reply_to=message)
            elif message.metadata.message_type == "query":
                if node in self.names and node not in self.silent:
                    yield identity_reply(message, self.names[node], None, self.troubles[node])
            elif node in self.back:
                self.join(node, self.names[node], self.back.pop(node))
                yield Message(Error(ErrorCode.NODE_UNAVAILABLE, "Flower's"), reply_to=message)
            elif node in self.deleted:
                yield Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "Flower's"), reply_to=message)
            elif identifier in self.answers:
                yield self.answers.pop(identifier)


def unpacked(message: Message) -> Message:
    message.content = unpack(message.content) if is_packed(message.content) else message.content
    return message


def model() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(2, np.float32))})


@pytest.fixture
def clock() -> Iterator[Time]:
    clock = Time()
    with flower_identity():
        yield clock


@pytest.fixture
def nodes(clock: Time) -> Nodes:
    nodes = Nodes(clock)
    nodes.join(10, "a")
    nodes.join(11, "b")
    return nodes


class Federation:
    """A grid of two clients and one training with them."""

    def __init__(
        self, nodes: Nodes, memory: Path | None = None, *overrides: str, keys: bool = False
    ) -> None:
        waits = ("runtime.client-wait=120", "runtime.return-wait=30", *overrides)
        experiment = load_experiment(None, waits)
        self.events: list[Any] = []
        table = PartitionTable(2, memory)
        self.clock = nodes.clock
        names = (lambda: nodes.names) if keys else None
        self.grid = AssignedGrid(nodes, table, experiment, self.events.append, self.clock, names)  # type: ignore[arg-type]

    def train(self, deadline: float = 0.0) -> dict[int, str]:
        """Train; gives what became of the clients that failed."""
        talk = Exchange(self.grid, deadline, self.events.append, clock=self.clock)
        config = ConfigRecord({"server-round": 1})
        tasks = [Task(partition, "train", 1, config) for partition in self.grid.partitions.values()]
        replies = talk.post(1, "train", [Batch(model(), tasks)])
        list(talk.outcomes())
        return {p: str(error) for p, error in replies.failures.items()}

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_a_client_that_is_away_for_less_than_return_wait_can_still_answer(
    clock: Time, nodes: Nodes
) -> None:
    federation = Federation(nodes)
    assert federation.grid.wait(2, 5)
    clock.after(1, lambda: nodes.answer(10))
    clock.after(2, lambda: nodes.leave(11))  # its heartbeats stay away: a cut, or a pause
    clock.after(27, lambda: nodes.join(11, "b"))
    clock.after(28, lambda: nodes.answer(11))
    assert federation.train() == {}
    assert nodes.asked.count("query") == 2  # it is known, and busy: nobody asks it again
    connected = federation.of(ClientsConnected)
    assert [e.partitions for e in connected] == [(0, 1), (0,), (0, 1)]
    assert (connected[1].gone, connected[1].patience) == ({"1": "b"}, 30.0)


def test_a_client_that_stays_away_is_lost_after_return_wait_and_not_waited_for_again(
    clock: Time, nodes: Nodes
) -> None:
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    clock.after(1, lambda: nodes.answer(10))
    clock.after(2, lambda: nodes.leave(11))
    began = clock.now
    assert federation.train() == {
        1: "it disconnected before it replied, and did not reconnect within 30 s"
    }
    assert 32 <= clock.now - began < 33.5
    before = clock.now
    assert federation.grid.gather(30) == 1
    assert clock.now == before


@pytest.mark.parametrize("goodbye", [False, True])
def test_a_client_that_was_started_again_tells_the_cause(
    clock: Time, nodes: Nodes, goodbye: bool
) -> None:
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    clock.after(1, lambda: nodes.answer(10))
    clock.after(2, lambda: nodes.leave(11, goodbye))
    clock.after(5, lambda: nodes.join(12, "b", "the process of its message was ended by SIGKILL"))
    began = clock.now
    assert federation.train() == {1: "the process of its message was ended by SIGKILL"}
    assert 5 <= clock.now - began < 7
    assert federation.grid.partitions == {10: 0, 12: 1}


def test_one_that_was_started_again_for_no_known_reason_is_lost_too(
    clock: Time, nodes: Nodes
) -> None:
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    clock.after(1, lambda: nodes.answer(10))
    clock.after(2, lambda: nodes.leave(11))
    clock.after(3, lambda: nodes.join(12, "b"))
    assert federation.train() == {1: "it was restarted before it replied"}


@pytest.mark.parametrize(
    ("cause", "seen"),  # seconds after which the run's server sees that its message was deleted
    [("its program was ended by SIGKILL", 12), ("its program was ended by SIGKILL", 13), ("", 13)],
)
def test_a_killed_client_that_returns_with_its_key_tells_the_cause_and_is_used_again(
    clock: Time, nodes: Nodes, cause: str, seen: float
) -> None:
    federation = Federation(nodes, keys=True)
    federation.grid.wait(2, 5)
    clock.after(1, lambda: nodes.answer(10))
    clock.after(2, lambda: nodes.leave(11))
    clock.after(12, lambda: nodes.join(11, "b", cause))  # the same node
    clock.after(seen, lambda: nodes.deleted.add(11))
    assert federation.train() == {1: cause or "it was restarted before it replied"}
    assert federation.grid.partitions == {10: 0, 11: 1}
    assert nodes.asked.count("query") == 3


@pytest.mark.parametrize("cause", ["its program was ended by SIGKILL", ""])
def test_a_client_that_is_back_before_the_nodes_are_listed_is_asked_what_ended_it(
    clock: Time, nodes: Nodes, cause: str
) -> None:
    federation = Federation(nodes, keys=True)
    federation.grid.wait(2, 5)
    clock.after(1, lambda: nodes.answer(10))
    clock.after(2, lambda: nodes.back.update({11: cause}))
    assert federation.train() == {1: cause or "Flower's"}
    assert federation.grid.partitions == {10: 0, 11: 1}
    assert nodes.asked.count("query") == 3


def test_a_dead_node_that_still_counts_does_not_take_its_followers_place(
    clock: Time, nodes: Nodes
) -> None:
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    nodes.silent.add(11)  # it is dead, and still listed for some seconds
    nodes.join(12, "b")
    for _ in range(4):
        clock.sleep(1)
        federation.grid.look()
        assert federation.grid.partitions == {10: 0, 12: 1}


def test_an_answer_that_flower_has_no_more_is_lost_though_its_node_is_there(
    clock: Time, nodes: Nodes
) -> None:
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    clock.after(1, lambda: nodes.answer(10))
    clock.after(2, lambda: nodes.unregistered.add(11))
    assert federation.train() == {1: "Flower's"}


def test_whom_the_training_waits_for_is_said(clock: Time, nodes: Nodes) -> None:
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    clock.after(3, lambda: nodes.answer(10))
    clock.after(25, lambda: nodes.answer(11))
    assert federation.train() == {}
    said = federation.of(ClientsAwaited)
    assert [(e.partitions, round(e.seconds), round(e.others)) for e in said] == [
        ((1,), 10, 3),
        ((1,), 20, 3),
    ]


class Busy(Nodes):
    """Nodes on a busy machine: a reply takes 9 s, and of 9 s they are listed for 8."""

    sent: dict[str, float]

    def get_node_ids(self) -> Iterable[int]:
        return list(self.names) if self.clock.now % 9 < 8 else []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = super().push_messages(messages)
        self.sent = vars(self).get("sent", {}) | dict.fromkeys(ids, self.clock.now)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(i for i in message_ids if self.clock.now - self.sent[i] >= 9)


def test_a_client_that_is_not_listed_at_times_connects_by_the_reply_to_its_first_query(
    clock: Time, nodes: Nodes
) -> None:
    busy = Busy(clock)
    for node, name in nodes.names.items():
        busy.join(node, name)
    assert Federation(busy).grid.wait(2, 20)
    assert busy.asked == ["query", "query"]


def test_a_client_that_left_before_it_replied_is_asked_again_when_it_is_back(
    clock: Time, nodes: Nodes
) -> None:
    federation = Federation(nodes)
    nodes.silent.add(11)
    assert not federation.grid.wait(2, 5)
    nodes.leave(11)
    nodes.unregistered.add(11)
    assert not federation.grid.wait(2, 5)
    nodes.unregistered.clear()
    nodes.silent.clear()
    nodes.join(11, "b")
    assert federation.grid.wait(2, 5)
    assert nodes.asked.count("query") == 3
    assert federation.grid.trouble == ""


def test_a_client_that_is_connected_but_silent_is_named_if_it_was_met_before(
    clock: Time, nodes: Nodes, tmp_path: Path
) -> None:
    memory = tmp_path / ".partitions.json"
    assert Federation(nodes, memory).grid.wait(2, 5)
    nodes.silent.add(11)
    nodes.join(12, "c")
    nodes.silent.add(12)
    later = Federation(nodes, memory)
    assert not later.grid.wait(2, 20)
    assert later.grid.trouble == (
        "; connected, but not responding: a client that never reported its name (node 12), b; "
        "restart them (docker restart)"
    )
    assert later.of(ClientReplied) == []


def test_what_went_wrong_at_a_client_stands_beside_the_number_of_those_that_are_there(
    clock: Time, nodes: Nodes
) -> None:
    nodes.leave(11)
    nodes.join(13, "b", "its container's program was ended by SIGKILL, out of memory")
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    assert federation.grid.trouble == (
        "; client b: its container's program was ended by SIGKILL, out of memory"
    )


def test_a_spare_that_takes_the_place_does_not_cut_off_a_client_that_is_back_in_time(
    clock: Time, nodes: Nodes
) -> None:
    nodes.join(12, "c")  # a spare
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    clock.after(1, lambda: nodes.answer(10))
    clock.after(2, lambda: nodes.leave(11))
    clock.after(9, lambda: nodes.join(11, "b"))
    clock.after(10, lambda: nodes.answer(11))
    assert federation.train() == {}
    assert federation.grid.partitions == {10: 0, 12: 1}


def test_a_client_whose_place_a_spare_took_is_lost_for_that(clock: Time, nodes: Nodes) -> None:
    nodes.join(12, "c", "an old trouble of its own")
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    clock.after(1, lambda: nodes.answer(10))
    clock.after(2, lambda: nodes.leave(11))
    assert federation.train() == {
        1: "it disconnected before it replied, and client c took its place"
    }


def test_a_client_that_is_given_up_is_not_waited_for_when_another_is_away_for_a_moment(
    clock: Time, nodes: Nodes
) -> None:
    federation = Federation(nodes)
    federation.grid.wait(2, 5)
    nodes.leave(11)
    clock.sleep(1)
    assert federation.grid.gather(30) == 1  # once
    nodes.leave(10)
    clock.sleep(1)
    clock.after(2, lambda: nodes.join(10, "a"))
    began = clock.now
    assert federation.grid.gather(30) == 1
    assert clock.now - began < 4
    assert federation.of(ClientsConnected)[-2].gone == {"0": "a"}  # the other is waited for no more
