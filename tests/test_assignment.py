"""Which node of a network holds which partition, and what happens when clients come and go."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from flsimulation.cli.presence import moved
from flsimulation.client.app import make_client_app
from flsimulation.clock import SYSTEM, Clock, VirtualClock
from flsimulation.errors import ClientError, RunError, describe_error
from flsimulation.events import (
    ClientMoved,
    ClientsConnected,
    EngineReported,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from flsimulation.experiment import flatten, load_experiment
from flsimulation.messages.batch import Batch, Task
from flsimulation.messages.codec import batch_of, failed_reply, message_of
from flsimulation.messages.packing import unpack
from flsimulation.metrics.server import PrometheusMetrics
from flsimulation.node import grid as assigned_grid
from flsimulation.node.assignment import Identity, PartitionTable
from flsimulation.node.grid import AssignedGrid
from flsimulation.node.grid import connect as connect_in_time
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.server.app import make_server_app

pytestmark = pytest.mark.seconds


def met(*names: str, first: int = 10, **configured: int) -> dict[int, Identity]:
    return {first + i: Identity(name, configured.get(name)) for i, name in enumerate(names)}


def test_new_clients_get_the_lowest_free_partitions_by_name() -> None:
    table = PartitionTable(3)
    table.update([10, 11], met("b", "a"))
    assert table.partitions == {11: 0, 10: 1}
    table.update([10, 11, 12], met("c", first=12))
    assert table.partitions == {11: 0, 10: 1, 12: 2}


def test_a_client_that_comes_back_gets_its_own_partition(tmp_path: Path) -> None:
    memory = tmp_path / "deep" / "memory.json"
    table = PartitionTable(3, memory)
    table.update([10, 11, 12], met("a", "b", "c"))
    assert json.loads(memory.read_text()) == {"a": 0, "b": 1, "c": 2}
    table.update([12], {})
    table.update([12, 20, 21], {20: Identity("new", None), 21: Identity("b", None)})
    assert table.partitions == {20: 0, 21: 1, 12: 2}
    later = PartitionTable(3, memory)  # the server was started anew
    later.update([30, 31], met("c", "new", first=30))
    assert later.partitions == {31: 0, 30: 2}


def test_a_name_that_comes_twice_is_the_same_client_started_anew() -> None:
    table = PartitionTable(2)
    table.update([10, 11], met("a", "b"))
    table.update([10, 11, 12], {12: Identity("a", None)})  # 10 is dead, but still counts as online
    assert table.partitions == {12: 0, 11: 1}
    assert table.nodes == {11, 12}


def test_spares_take_over_and_the_rest_keep_theirs() -> None:
    table = PartitionTable(2)
    table.update([10, 11, 12], met("a", "b", "c"))
    assert table.partitions == {10: 0, 11: 1}
    table.update([11, 12], {})
    assert table.partitions == {12: 0, 11: 1}
    table.update([11, 12, 13], {13: Identity("a", None)})  # too late: it is the spare now
    assert table.partitions == {12: 0, 11: 1}


def test_a_configured_partition_comes_before_an_assigned_one() -> None:
    table = PartitionTable(2)
    table.update([10], met("a"))
    table.update([10, 11], {11: Identity("b", 0)})
    assert table.partitions == {11: 0, 10: 1}


def whys(refused: list[tuple[Identity, str]]) -> dict[str, str]:
    return {identity.name: why for identity, why in refused}


def test_impossible_configurations_are_refused_by_name_and_stop_nobody() -> None:
    table = PartitionTable(2)
    news = table.update([10, 11, 12], met("a", "b", "c", a=2, b=1, c=1))
    assert whys(news) == {
        "a": "client a is configured for partition 2, but the experiment has partitions 0 to 1; "
        "change its partition or data.clients",
        "c": "client c is configured for partition 1, which client b holds; configure a different "
        "one for each",
    }
    assert table.partitions == {11: 1}
    assert table.update([10, 11, 12], met("a", "b", "c", a=2, b=1, c=1)) == []  # said once
    assert set(table.refused) == {10, 12}
    assert table.update([12], {12: Identity("c", 1)}) == []  # b has gone
    assert (table.partitions, table.refused) == ({12: 1}, {})


def test_a_partition_that_belongs_to_a_name_is_for_no_other_client() -> None:
    table = PartitionTable(2, verified=True, sites=("berlin", "lodz"))
    table.update([10, 11], met("lodz", "madrid"))  # neither is configured for a partition
    assert table.partitions == {10: 1}
    for strict in (True, False):
        news = table.update([10, 11, 12], met("madrid", first=12, madrid=0), strict=strict)
        assert (table.partitions, bool(news)) == ({10: 1}, strict)
    assert table.refused[12].startswith("client madrid was started as site berlin, which only ")
    table.update([10, 14], met("berlin", first=14, berlin=0), strict=False)
    assert table.partitions == {14: 0, 10: 1}


@pytest.mark.parametrize("text", ["", "[]", '{"a": true, "b": "x"}', "{"])
def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory").write_text(text)
    table = PartitionTable(2, tmp_path / "memory")
    table.update([10], met("a"))
    assert table.partitions == {10: 0}


class Network(Grid):
    """Flower's grid as a network gives it: nodes come and go, and know no partition."""

    def __init__(self, app: ClientApp, names: Iterable[str], config: dict[str, Any]) -> None:
        self.app, self.config = app, config
        self.waiting: dict[str, Message] = {}
        self.sent = 0
        self.names: dict[int, str] = {}
        self.places: dict[str, int] = {}
        """The partition that a client is configured for, by its name."""
        self.types: list[str] = []
        self.pushed: list[int] = []
        self.dead: set[int] = set()
        self.next = 100
        for name in names:
            self.join(name)

    def join(self, name: str) -> int:
        self.next += 1
        self.names[self.next] = name
        return self.next

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.names, reverse=True)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.pushed.append(len(messages))
        self.types += [m.metadata.message_type for m in messages]
        identifiers = []
        for message in messages:
            self.sent += 1
            identifiers.append(identifier := str(self.sent))
            vars(message.metadata)["_message_id"] = identifier
            self.waiting[identifier] = message
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """One node answers, the first that is alive."""
        for identifier in list(message_ids):
            message = self.waiting.get(identifier)
            node = message.metadata.dst_node_id if message is not None else 0
            if message is not None and node in self.names.keys() - self.dead:
                del self.waiting[identifier]
                return [self._answer(message, node)]
        return []

    def _answer(self, message: Message, node: int) -> Message:
        name = self.names[node]
        own = {"name": name, "partition-id": self.places.get(name)}
        own = {key: value for key, value in own.items() if value is not None}
        context = Context(1, node, own, RecordDict(), self.config)
        try:
            return self.app(message, context)
        except Exception as error:
            return failed_reply(message, ClientError("error", describe_error(error)))

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        raise NotImplementedError


class Ticking(VirtualClock):
    """A virtual clock that advances by a tenth of a second for every sleep."""

    def sleep(self, seconds: float) -> None:
        super().sleep(0.1)


def connect(grid: Any, experiment: Any, emit: Any, clock: Clock) -> AssignedGrid:
    """The network's grid, by a clock that ticks."""
    assert clock is SYSTEM  # the workspace's
    return connect_in_time(grid, experiment, emit, Ticking())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look without a pause, under an identity as Flower's own runtimes set it."""
    monkeypatch.setattr(assigned_grid, "_LOOK_SECONDS", 0.0)
    with flower_identity():
        yield


def experiment(*overrides: str) -> Any:
    small = ("data.examples-per-client=50", "runtime.client-wait=0.3", "runtime.return-wait=0")
    return load_experiment(None, [*small, *overrides])


def federate(spec: Any, network: Network, events: list[Any]) -> None:
    context = Context(1, 1, {}, RecordDict(), dict(flatten(spec)))
    make_server_app([events.append], connect=connect)(network, context)


def network_of(spec: Any, names: Iterable[str]) -> Network:
    return Network(make_client_app(), names, flatten(spec))


def test_a_network_gives_what_one_process_gives() -> None:
    from flsimulation.runtimes.inprocess import run_in_process

    spec = experiment("data.clients=4", "strategy.fraction-train=0.5", "train.engine=lightning")
    here: list[Any] = []
    there: list[Any] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that train one client each
    try:
        run_in_process(spec, [here.append])
        federate(spec, network := network_of(spec, ["d", "a", "c", "b"]), there)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(of(here, RoundFinished), of(there, RoundFinished), strict=True):
        assert one.cohort == other.cohort
        assert one.weights_sha256 == other.weights_sha256
        assert (one.central, one.federated) == (other.central, other.federated)
    # after four questions: training 2; evaluating 4 of which 2 train as well, twice; evaluating 4
    assert network.types.count("query") == 4
    assert network.types.count("train") == 6
    assert network.types.count("evaluate") <= 4 * 3
    assert len([t for t in network.types if t == "evaluate"]) < 12


def of(events: list[Any], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_evaluation_rides_on_the_next_training_where_all_clients_take_part() -> None:
    spec = experiment("strategy.rounds=3")
    events: list[Any] = []
    federate(spec, network := network_of(spec, ["a", "b"]), events)
    assert network.types == ["query"] * 2 + ["train"] * 6 + ["evaluate"] * 2
    rounds = of(events, RoundFinished)
    assert [r.round for r in rounds] == [1, 2, 3]
    assert all(r.federated is not None and r.central is not None for r in rounds)
    down = [r.bytes["down"] for r in rounds]
    assert down[0] < down[2] / 1.9  # one model a client, not two
    assert all(r.seconds["total"] > 0 and r.seconds["evaluate"] >= 0 for r in rounds)


def test_too_few_clients_end_the_run_with_a_sentence() -> None:
    spec = experiment("data.clients=3")
    events: list[Any] = []
    with pytest.raises(RunError, match=r"1 of 3 clients connected within 0\.3 s; start more"):
        federate(spec, network_of(spec, ["a"]), events)
    assert [e.partitions for e in of(events, ClientsConnected)] == [(), (0,)] or [
        e.partitions for e in of(events, ClientsConnected)
    ] == [(0,)]
    (end,) = of(events, RunFinished)
    assert end.state == "failed"


def test_who_claims_anothers_partition_is_refused_by_name_and_the_run_goes_on() -> None:
    spec = experiment("strategy.rounds=2")
    network = network_of(spec, ["a", "b", "thief", "stray"])
    network.places = {"a": 0, "thief": 0, "stray": 7}
    events: list[Any] = []

    def verified(grid: Any, spec: Any, emit: Any, _: Clock) -> AssignedGrid:
        return connect_in_time(grid, spec, emit, Ticking(), names=lambda: network.names)

    context = Context(1, 1, {}, RecordDict(), dict(flatten(spec)))
    make_server_app([events.append], connect=verified)(network, context)
    assert of(events, RunFinished)[0].state == "completed"
    assert [event.cohort for event in of(events, RoundFinished)] == [(0, 1), (0, 1)]
    moves = of(events, ClientMoved)
    assert {(m.move, m.partition) for m in moves} == {("refused", 0), ("refused", 7)}
    whys = {m.name: m.why for m in moves}
    assert whys["stray"].startswith("client stray is configured for partition 7, but the exper")
    assert whys["thief"].startswith("client thief is configured for partition 0, which client a h")
    metrics = PrometheusMetrics(None)
    for event in events:
        metrics(event)
    count = metrics.registry.get_sample_value("fl_client_moves_total", {"move": "refused"})
    assert count == 2
    assert moved(moves[0]).startswith(f"client {moves[0].partition} ({moves[0].name}) was refused ")


def test_a_run_that_clients_may_join_begins_without_those_that_are_missing() -> None:
    spec = experiment(
        "data.clients=3", "round.late=join", "round.min-results=2", "strategy.rounds=5"
    )
    events: list[Any] = []
    network = network_of(spec, ["a", "b"])

    def watch(event: Any) -> None:
        events.append(event)
        if isinstance(event, RoundFinished) and event.round == 1:
            network.join("c")

    context = Context(1, 1, {}, RecordDict(), dict(flatten(spec)))
    make_server_app([watch], connect=connect)(network, context)
    cohorts = [e.cohort for e in of(events, RoundFinished)]
    assert (cohorts[0], cohorts[-1]) == ((0, 1), (0, 1, 2))
    (moved,) = of(events, ClientMoved)
    assert (moved.move, moved.name, moved.partition) == ("joined", "c", 2)
    assert 1 <= moved.round < 5
    assert of(events, RunFinished)[0].state == "completed"
    with pytest.raises(
        RunError, match=r"1 of 3 clients connected within 0\.3 s, at least 2 needed; start"
    ):
        federate(spec, network_of(spec, ["a"]), [])


def test_a_client_that_goes_away_is_counted_and_used_again_when_it_is_back() -> None:
    spec = experiment("strategy.rounds=4")
    network = network_of(spec, ["a", "b"])
    events: list[Any] = []

    def watch(event: Any) -> None:
        events.append(event)
        if isinstance(event, RoundFinished) and event.round == 1:
            (node,) = [n for n, name in network.names.items() if name == "b"]
            del network.names[node]  # while round 3 is about to go out
        if isinstance(event, RoundFinished) and event.round == 3:
            network.join("b")

    context = Context(1, 1, {}, RecordDict(), dict(flatten(spec)))
    make_server_app([watch], connect=connect)(network, context)
    cohorts = {e.round: e.cohort for e in of(events, RoundFinished)}
    assert cohorts[1] == (0, 1)
    assert (0,) in cohorts.values()
    assert sorted(cohorts) == [1, 2, 3, 4]
    connected = [e.partitions for e in of(events, ClientsConnected)]
    assert connected[-1] == (0, 1)
    assert (0,) in connected


def test_a_client_that_dies_in_a_phase_is_lost_and_does_not_hold_up_the_round() -> None:
    spec = experiment("strategy.rounds=2")
    network = network_of(spec, ["a", "b"])
    events: list[Any] = []

    def watch(event: Any) -> None:
        events.append(event)
        if type(event).__name__ == "PhaseStarted" and event.phase == "train" and event.round == 2:
            (node,) = [n for n, name in network.names.items() if name == "b"]
            network.dead.add(node)
            network.join("b")  # started anew; its old node still counts as online

    context = Context(1, 1, {}, RecordDict(), dict(flatten(spec)))
    make_server_app([watch], connect=connect)(network, context)
    lost = [e for e in events if getattr(e, "reason", None) == "lost"]
    assert [(e.round, e.phase, e.partition) for e in lost] == [(1, "evaluate", 1), (2, "train", 1)]
    rounds = of(events, RoundFinished)
    assert [r.failures for r in rounds] == [{"lost": 1}, {"lost": 1}]


def test_tasks_tell_each_node_its_partition() -> None:
    seen: dict[str, list[tuple[int, str]]] = {}
    app = make_client_app()

    @app.train("probe")
    def probe(message: Message, context: Any) -> Message:
        batch = batch_of(unpacked := Message(unpack(message.content), reply_to=message))
        seen[str(context.node_config["name"])] = [(t.partition, t.phase) for t in batch.tasks]
        return unpacked

    spec = experiment()
    network = Network(app, ["b", "a"], flatten(spec))
    grid = AssignedGrid(network, PartitionTable(2), spec, lambda event: None, Ticking())
    assert grid.wait(2, 5)
    settings = ConfigRecord({"x": 1})
    tasks = [Task(p, phase, 1, settings) for phase in ("evaluate", "train") for p in (0, 1, 2)]  # type: ignore[arg-type]
    divided = list(grid.divided(Batch(ArrayRecord(), tasks)))
    assert [node is None for node, _ in divided] == [False, False, True]  # nobody holds the third
    messages = [message_of(batch, node) for node, batch in divided if node is not None]
    for message in messages:
        message.metadata.message_type = "train.probe"
    contents = [message.content for message in messages]
    ids = grid.push_messages(messages)
    for _ in range(2):
        list(grid.pull_messages(ids))
    assert seen == {
        network.names[node]: [(partition, "evaluate"), (partition, "train")]
        for node, partition in grid.partitions.items()
    }
    assert sorted(grid.partitions.values()) == [0, 1]
    assert [message.content for message in messages] == contents  # packed in copies
    assert network.pushed == [2, 1, 1]  # who are you, at once; then each message with its parts


def test_a_networks_clients_report_what_they_compute_with() -> None:
    spec = experiment("train.engine=stacked", "strategy.rounds=1")
    events: list[Any] = []
    federate(spec, network_of(spec, ["a", "b"]), events)
    (started,) = of(events, RunStarted)
    assert (started.engine, started.not_stacked) == (None, None)
    assert of(events, EngineReported) == [EngineReported("stacked", None)]
    names = [type(event).__name__ for event in events]
    assert names.index("EngineReported") < names.index("ClientReplied")


def test_a_client_that_cannot_say_who_it_is_says_why() -> None:
    spec = experiment()
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Any) -> Message:
        raise ValueError("another version")

    network = Network(app, ["a", "b"], flatten(spec))
    with pytest.raises(RunError, match=r"0 of 2 clients .*; a client replied: .*another version"):
        federate(spec, network, [])


def test_keys_of_the_driver_are_not_the_experiments() -> None:
    spec = experiment()
    events: list[Any] = []
    network = Network(make_client_app(), ["a", "b"], flatten(spec) | {"driver.out": "x"})
    federate(spec, network, events)
    assert of(events, RunFinished)[0].state == "completed"


def test_in_the_middle_of_a_run_no_newcomer_ends_it() -> None:
    table = PartitionTable(2)
    table.update([10, 11], met("a", "b", a=0, b=1))
    table.update([10, 11, 12], {12: Identity("wrong", 7)}, strict=False)
    assert table.partitions == {10: 0, 11: 1}
    assert table.nodes == {10, 11}
    # made anew under another name, while the old node still counts as online
    table.update([10, 11, 13], {13: Identity("b2", 1)}, strict=False)
    assert table.partitions == {10: 0, 13: 1}


def test_a_client_of_another_key_does_not_get_the_place_of_one_that_is_there() -> None:
    table = PartitionTable(2, verified=True)
    table.update([10, 11], {10: Identity("a", None), 11: Identity("b", 1)})
    assert table.partitions == {10: 0, 11: 1}
    thieves = {12: Identity("c", 0), 13: Identity("d", 1)}
    news = table.update([10, 11, 12, 13], thieves, strict=False)
    assert table.partitions == {10: 0, 11: 1}
    assert whys(news)["c"].startswith(
        "client c is configured for partition 0, which client a holds"
    )
    assert whys(news)["d"].startswith(
        "client d is configured for partition 1, which client b holds"
    )
    table.update([10, 14, 12, 13], {14: Identity("b", 1)}, strict=False)  # b itself, restarted
    assert table.partitions == {10: 0, 14: 1}
    table.update([10, 12, 13], thieves, strict=False)  # b is gone: its place is free
    assert table.partitions == {10: 0, 13: 1}
