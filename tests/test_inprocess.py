"""The in-process Grid, and the two names of Flower that are not public."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from flsimulation import run
from flsimulation.errors import RunError
from flsimulation.messages.content import failure_of
from flsimulation.runtimes.inprocess import InProcessGrid, flower_identity, run_in_process
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.trainer import CohortTrainer


@pytest.fixture
def grid() -> InProcessGrid:
    """Three nodes that count their messages; the last one raises."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if partition == 2:
            raise ValueError("boom")
        seen = context.state.setdefault("seen", MetricRecord({"n": 0}))
        seen["n"] = int(seen["n"]) + 1
        content = {
            "n": seen["n"],
            "of": context.node_config["num-partitions"],
            "lr": context.run_config["lr"],
        }
        return Message(RecordDict({"m": MetricRecord(content)}), reply_to=message)

    return InProcessGrid(app, 3, {"lr": 0.5})


def ask(grid: InProcessGrid, *nodes: int) -> list[Message]:
    return [Message(RecordDict(), node, "query") for node in nodes]


def test_nodes_stand_in_the_order_of_partitions(grid: InProcessGrid) -> None:
    assert [grid.partitions[node] for node in grid.get_node_ids()] == [0, 1, 2]


def test_one_pull_lets_one_client_answer(grid: InProcessGrid) -> None:
    with flower_identity():
        first, second, _ = grid.get_node_ids()
        identifiers = list(grid.push_messages(ask(grid, first, second)))
        assert len(set(identifiers)) == 2
        answers = [list(grid.pull_messages(identifiers)) for _ in range(3)]
    assert [[a.metadata.src_node_id for a in some] for some in answers] == [[first], [second], []]


def test_a_nodes_state_outlives_its_message_and_is_its_own(grid: InProcessGrid) -> None:
    with flower_identity():
        first, second, _ = grid.get_node_ids()
        for _ in range(2):
            grid.send_and_receive(ask(grid, first))
        answers = list(grid.send_and_receive(ask(grid, first, second)))
    assert [dict(a.content["m"]) for a in answers] == [
        {"n": 3, "of": 3, "lr": 0.5},
        {"n": 1, "of": 3, "lr": 0.5},
    ]


def test_an_app_that_raises_gives_an_answer_with_its_error(grid: InProcessGrid) -> None:
    with flower_identity():
        (answer,) = grid.send_and_receive(ask(grid, list(grid.get_node_ids())[2]))
    error = failure_of(answer)
    assert error is not None
    assert error.reason == "error"
    assert str(error).startswith("ValueError: boom (test_inprocess.py:")


def test_a_timeout_leaves_the_rest_out(grid: InProcessGrid) -> None:
    with flower_identity():
        identifiers = list(grid.get_node_ids())
        assert list(grid.send_and_receive(ask(grid, *identifiers), timeout=0)) == []
        assert list(grid.pull_messages(["1", "2", "3"])) == []


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
            "the GPU's memory does not hold the clients that train together (OutOfMemoryError: "
            "CUDA out of memory. Tried to allocate 3 GiB.); lower train.batch-size, or set "
            "train.engine = 'sequential' or train.device = 'cpu'",
        ),
        (
            NotStackable("training_step uses batch_idx"),
            "the clients cannot be trained together after all: training_step uses batch_idx; set "
            "train.engine = 'sequential'",
        ),
    ],
)
def test_a_wave_that_fails_as_a_whole_ends_the_run_with_a_sentence(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def failing(*_: Any, **__: Any) -> Iterator[Any]:
        raise error.with_traceback(None)
        yield

    monkeypatch.setattr(CohortTrainer, "fit", failing)
    spec = make_experiment()
    with pytest.raises(RunError) as caught:
        run_in_process(spec)
    assert re.sub(r" \(\w+\.py:\d+\)", "", str(caught.value)) == message
