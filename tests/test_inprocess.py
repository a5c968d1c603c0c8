"""The in-process Grid, and the two names of Flower that are not public."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from flsimulation import run
from flsimulation.client.workspace import Workspace
from flsimulation.errors import RunError
from flsimulation.events import ClientReplied
from flsimulation.messages.batch import Batch, Outcome, Reply, Task
from flsimulation.messages.codec import message_of, reply_of
from flsimulation.runtimes.inprocess import InProcessGrid, run_in_process
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.training import Terms
from flsimulation.training.stacked import room
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.trainer import StackedTrainer


class Clients:
    """Answer one by one; which began and whether they were ended is kept."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.ended: list[int] = []

    def __call__(self, batch: Batch) -> Iterator[Reply]:
        try:
            for partition, phase, *_ in batch.tasks:
                self.began.append(partition)
                yield Reply([Outcome(partition, phase, {"num-examples": 10 * partition})])
        finally:
            self.ended.append(batch.tasks[0].partition)


@pytest.fixture
def clients() -> Clients:
    return Clients()


@pytest.fixture
def grid(clients: Clients) -> InProcessGrid:
    return InProcessGrid(clients, 3)


def ask(grid: InProcessGrid, *partitions: int, seconds: float = 0.0) -> list[str]:
    tasks = [Task(partition, "train", 1, ConfigRecord()) for partition in partitions]
    ((node, batch),) = grid.divided(Batch(ArrayRecord(), tasks))
    assert node is not None
    return list(grid.push_messages([message_of(batch, node, seconds)]))


def told(messages: Iterable[Message]) -> list[tuple[int, dict[str, float]]]:
    replies = [reply_of(message) for message in messages]
    assert all(isinstance(reply, Reply) for reply in replies)
    return [(o.partition, o.metrics) for reply in replies for o in reply.outcomes]  # type: ignore[union-attr]


def test_nodes_stand_in_the_order_of_partitions(grid: InProcessGrid) -> None:
    assert [grid.partitions[node] for node in grid.get_node_ids()] == [0, 1, 2]


def test_a_cohort_is_one_message_and_one_pull_lets_one_client_answer(
    grid: InProcessGrid, clients: Clients
) -> None:
    with flower_identity():
        identifiers = ask(grid, 2, 0)
        assert clients.began == []
        answers = [list(grid.pull_messages(identifiers)) for _ in range(3)]
    assert [told(some) for some in answers] == [
        [(2, {"num-examples": 20})],
        [(0, {"num-examples": 0})],
        [],
    ]
    replied = {message.metadata.reply_to_message_id for some in answers for message in some}
    assert replied == {*identifiers}


def test_messages_are_answered_one_after_the_other(grid: InProcessGrid, clients: Clients) -> None:
    with flower_identity():
        first, second = ask(grid, 0, 1), ask(grid, 2)
        assert len({*first, *second}) == 2
        pulled = [told(grid.pull_messages([*first, *second])) for _ in range(4)]
    assert [[partition for partition, _ in some] for some in pulled] == [[0], [1], [2], []]
    assert clients.ended == [0, 2]


@pytest.mark.parametrize("name", ["message_ids", "reply_to_message_ids"])
def test_answers_are_pulled_by_the_name_of_either_flower_or_all_at_once(
    grid: InProcessGrid, name: str
) -> None:
    with flower_identity():
        _, second = ask(grid, 0), ask(grid, 2)
        assert told(grid.pull_messages(**{name: second})) == [(2, {"num-examples": 20})]
        assert told(grid.pull_messages()) == [(0, {"num-examples": 0})]
        assert told(grid.pull_messages()) == []


def test_work_that_nobody_waits_for_is_ended(grid: InProcessGrid, clients: Clients) -> None:
    with flower_identity():
        first, second = ask(grid, 0, 1), ask(grid, 2)
        list(grid.pull_messages([*first, *second]))
        assert clients.ended == []
        assert told(grid.pull_messages(second)) == [(2, {"num-examples": 20})]
        assert list(grid.pull_messages(["9"])) == []
    assert (clients.began, clients.ended) == ([0, 2], [0, 2])


def test_a_message_whose_time_is_over_is_dropped_with_the_next(
    grid: InProcessGrid, clients: Clients
) -> None:
    with flower_identity():
        late, next_one = ask(grid, 0, seconds=1e-9), ask(grid, 1)
        assert told(grid.pull_messages([*late, *next_one])) == [(1, {"num-examples": 10})]
    assert clients.began == [1]


def test_what_ends_a_cohort_as_a_whole_is_raised() -> None:
    def failing(batch: Batch) -> Iterator[Reply]:
        raise RunError("no memory")
        yield

    grid = InProcessGrid(failing, 3)
    with flower_identity(), pytest.raises(RunError, match="no memory"):
        grid.pull_messages(ask(grid, 0))


def test_clients_are_reached_by_push_and_pull_alone(grid: InProcessGrid) -> None:
    with pytest.raises(NotImplementedError, match="post tasks to the exchange"):
        grid.send_and_receive([])


def test_messages_and_runs_are_flowers_own(grid: InProcessGrid) -> None:
    with flower_identity():
        message = grid.create_message(RecordDict(), "query", 2, "group", ttl=9.0)
    assert (message.metadata.dst_node_id, message.metadata.ttl) == (2, 9.0)
    assert message.metadata.group_id == "group"
    grid.set_run(Run.create_empty(7))
    assert grid.run.run_id == 7


def test_flower_still_needs_the_identity_that_we_set_and_restore() -> None:
    names = ("_task_id", "_run_id", "_node_id")
    before = [getattr(TaskIdentity, name) for name in names]
    with pytest.raises(RuntimeError, match="TaskIdentity.*is not set"):
        Message(RecordDict(), 2, "query")
    with flower_identity():
        metadata = Message(RecordDict(), 2, "query").metadata
        assert (metadata.run_id, metadata.src_node_id) == (
            TaskIdentity.run_id,
            TaskIdentity.node_id,
        )
    assert [getattr(TaskIdentity, name) for name in names] == before


def test_flower_is_quiet_inside_a_run_and_as_before_after_it(
    make_experiment: Any, tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("flwr")
    level = logger.level
    run(make_experiment(), tmp_path / "run")
    assert logger.level == level
    assert capfd.readouterr() == ("", "")


def test_a_fit_that_is_not_read_to_its_end_leaves_pytorch_its_threads(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_WAVE_BYTES", 1)  # many waves
    space = Workspace.load(make_experiment(train={"engine": "stacked", "device": "cpu"}))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        jobs = [space.train_job(partition, 1) for partition in range(4)]
        fit = space.engine.fit(space.initial_state(), jobs, Terms())
        assert len(next(fit).results) == 1
        fit.close()  # type: ignore[attr-defined]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_many_clients_are_evaluated_together_also_where_one_trains(make_experiment: Any) -> None:
    one = {"fraction-train": 0.25, "min-train-nodes": 1}
    assert make_experiment(strategy=one).cohort_size == 1
    one["rounds"] = 1000  # so that they are worth a trace
    assert Workspace.load(make_experiment(strategy=one)).engine.name == "stacked"
    assert Workspace.load(make_experiment(strategy=one), clients=1).engine.name == "direct"


@pytest.mark.parametrize("engine", ["stacked", "lightning"])
def test_a_run_that_breaks_off_leaves_pytorch_its_threads(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    def broken(event: Any) -> None:
        if isinstance(event, ClientReplied):
            raise ValueError("a sink that fails while others still train")

    monkeypatch.setattr(room, "_WAVE_BYTES", 1)  # many waves
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="a sink that fails") as caught:
            run_in_process(make_experiment(train={"engine": engine, "device": "cpu"}), [broken])
        assert caught.value.__traceback__ is not None  # and with it all that was at work
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.seconds
def test_the_garbage_collector_passes_over_imports_during_a_run_only(make_experiment: Any) -> None:
    frozen: list[int] = []
    run_in_process(make_experiment(), [lambda _: frozen.append(gc.get_freeze_count())])
    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == 0
    gc.freeze()  # somebody else's: left alone
    try:
        run_in_process(make_experiment(strategy={"rounds": 1}))
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 GiB."),
            "there is not enough memory to train a single client stacked (OutOfMemoryError: "
            "CUDA out of memory. Tried to allocate 3 GiB.); lower train.batch-size, or set "
            "train.engine = 'lightning'",
        ),
        (
            NotStackable("training_step uses batch_idx"),
            "the clients cannot be trained together after all: training_step uses batch_idx; set "
            "train.engine = 'lightning'",
        ),
    ],
)
def test_a_wave_that_fails_as_a_whole_ends_the_run_with_a_sentence(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def failing(*_: Any, **__: Any) -> Iterator[Any]:
        raise error.with_traceback(None)
        yield

    monkeypatch.setattr(StackedTrainer, "fit", failing)
    spec = make_experiment(train={"engine": "stacked", "device": "cpu"})
    with pytest.raises(RunError) as caught:
        run_in_process(spec)
    assert re.sub(r" \(\w+\.py:\d+\)", "", str(caught.value)) == message
