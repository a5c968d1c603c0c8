"""The ClientApp: one answer for a batch of tasks, whoever carries it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from flsimulation.client.app import make_client_app
from flsimulation.client.workspace import Workspace
from flsimulation.errors import RunError
from flsimulation.experiment import flatten
from flsimulation.messages.batch import Batch, Outcome, Reply, Task
from flsimulation.messages.codec import message_of, reply_of
from flsimulation.messages.packing import is_packed, pack, unpack
from flsimulation.messages.state_dicts import held_state, record_of
from flsimulation.runtimes.simulated import flower_identity

CONFIG = ConfigRecord({"server-round": 1})


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with flower_identity():
        yield


def context(config: Any = None, **node: Any) -> Context:
    return Context(5, 2, node, RecordDict(), config or {})


def reply_from(answer: Message) -> Reply:
    reply = reply_of(answer)
    assert isinstance(reply, Reply)
    return reply


def by_task(reply: Reply) -> dict[tuple[int, str], Outcome]:
    return {(outcome.partition, outcome.phase): outcome for outcome in reply.outcomes}


@pytest.fixture
def space(make_experiment: Callable[..., Any]) -> Workspace:
    return Workspace.load(make_experiment(train={"engine": "lightning"}), processes=1)


def batch_for(space: Workspace, *tasks: tuple[int, Any], average: bool = False) -> Batch:
    model = record_of(space.initial_state())
    return Batch(model, [Task(p, phase, 1, CONFIG) for p, phase in tasks], average)


@pytest.mark.parametrize("packed", [False, True])
def test_a_message_with_many_tasks_has_one_answer(space: Workspace, packed: bool) -> None:
    told: list[Any] = []
    began: list[int] = []
    app = make_client_app(lambda _: space, lambda *found: told.append(found), began=began.append)
    message = message_of(batch_for(space, (1, "evaluate"), (1, "train"), (3, "train")), 2)
    if packed:
        message.content = pack(message.content, {})
    answer = app(message, context())
    assert is_packed(answer.content) is packed
    if packed:
        answer.content = unpack(answer.content)
    reply = reply_from(answer)
    outcomes = by_task(reply)
    assert {*outcomes} == {(1, "evaluate"), (1, "train"), (3, "train")}
    assert (reply.engine, reply.why_not) == ("lightning", None)
    evaluated, trained = outcomes[1, "evaluate"], outcomes[1, "train"]
    assert (evaluated.metrics["num-examples"], trained.metrics["num-examples"]) == (6, 54)
    assert trained.model is not None
    # the model is evaluated as it came, and trained from there
    alone = space.engine.evaluate(space.initial_state(), [space.evaluation_job(1, 1)])
    ((_, scores),) = next(alone).items()
    assert evaluated.metrics == {**scores, "num-examples": 6}  # type: ignore[dict-item]
    after = held_state(trained.model)
    assert any((after[name] != value).any() for name, value in space.initial_state().items())
    assert began == [1]
    ((run, batch, seen),) = told
    assert (run, len(batch.tasks), len(seen.outcomes)) == (5, 3, 3)


@pytest.mark.seconds
def test_many_clients_that_train_stacked_return_one_mean(make_experiment: Any) -> None:
    space = Workspace.load(make_experiment(train={"engine": "stacked"}))
    app = make_client_app(lambda _: space)
    batch = batch_for(space, (0, "train"), (1, "train"), (2, "train"), average=True)
    reply = reply_from(app(message_of(batch, 2), context()))
    assert reply.engine == "stacked"
    assert reply.mean is not None
    assert reply.mean.weight == 3 * 54
    assert [outcome.model for outcome in reply.outcomes] == [None] * 3


def test_the_strategys_settings_and_the_deadline_reach_the_engine(space: Workspace) -> None:
    app = make_client_app(lambda _: space)
    start = space.initial_state()

    def moved(config: ConfigRecord) -> float:
        batch = Batch(record_of(start), [Task(0, "train", 1, config)])
        (outcome,) = reply_from(app(message_of(batch, 2), context())).outcomes
        assert outcome.model is not None
        after = held_state(outcome.model)
        return sum(float((after[name] - value).square().sum()) for name, value in start.items())

    assert moved(ConfigRecord({"proximal-mu": 100.0})) < 0.5 * moved(ConfigRecord({}))
    late = app(message_of(batch_for(space, (0, "train"), (1, "evaluate")), 2, 1e-6), context())
    errors = [outcome.error for outcome in reply_from(late).outcomes]
    assert [error and error.reason for error in errors] == ["deadline", "deadline"]


def test_data_that_is_not_there_is_the_outcome_of_every_task(
    space: Workspace, make_experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = make_experiment(data={"dataset": "file:/not/there.npz"})
    batch = batch_for(space, (0, "evaluate"), (0, "train"))
    answer = make_client_app()(message_of(batch, 2), context(flatten(elsewhere)))
    reply = reply_from(answer)
    outcomes = by_task(reply)
    assert {*outcomes} == {(0, "evaluate"), (0, "train")}
    for outcome in outcomes.values():
        assert outcome.error is not None
        assert outcome.error.reason == "error"
        assert "/not/there.npz" in str(outcome.error)
    assert reply.engine is None
    assert "Traceback" in capsys.readouterr().err  # for the log of the client


def test_a_name_that_is_in_use_fails_the_client_that_logs_it(
    make_experiment: Any, own_modules: Any
) -> None:
    module = own_modules("""
from flsimulation.models import MLP
class Own(MLP):
    def training_step(self, batch, batch_idx):
        self.log("steps", 1.0)
        return super().training_step(batch, batch_idx)
""")
    model = {"class": f"{module}:Own", "args": {"inputs": 6, "classes": 3, "hidden": [8, 8]}}
    space = Workspace.load(make_experiment(model=model), clients=1)
    batch = batch_for(space, (0, "evaluate"), (0, "train"))
    reply = reply_from(make_client_app(lambda _: space)(message_of(batch, 2), context()))
    outcomes = by_task(reply)
    assert outcomes[0, "evaluate"].error is None
    assert (
        str(outcomes[0, "train"].error)
        == "the module logs 'steps', which is a reserved name; use another"
    )


def plain(space: Workspace, kind: str) -> Message:
    content = RecordDict({"arrays": record_of(space.initial_state()), "config": CONFIG})
    return Message(content, 2, kind)


def test_flowers_own_round_loop_is_answered_in_its_words(space: Workspace) -> None:
    app = make_client_app(lambda _: space)
    node = context(**{"partition-id": 2, "num-partitions": 4})
    trained, evaluated = (app(plain(space, kind), node).content for kind in ("train", "evaluate"))
    assert list(trained) == ["metrics", "arrays"]
    assert trained["metrics"]["num-examples"] == 54  # type: ignore[index, call-overload]
    assert list(evaluated) == ["metrics"]
    assert evaluated["metrics"]["num-examples"] == 6  # type: ignore[index, call-overload]
    ((outcome,),) = [reply_from(app(message_of(batch_for(space, (2, "train")), 2), node)).outcomes]
    assert outcome.model is not None
    for name, array in outcome.model.items():  # the same training, by either way
        assert (trained["arrays"][name].numpy() == array.numpy()).all()  # type: ignore[index, call-overload, union-attr]


def test_a_node_without_a_partition_says_so(space: Workspace) -> None:
    with pytest.raises(RunError, match="set partition-id in its node config"):
        make_client_app(lambda _: space)(plain(space, "train"), context())


def test_each_experiment_has_its_own_data_in_a_process_that_stays(make_experiment: Any) -> None:
    app = make_client_app()
    for clients, examples in ((4, 54), (8, 27), (4, 54)):
        experiment = make_experiment(data={"clients": clients})
        space = Workspace.load(experiment, clients=0)
        message = message_of(batch_for(space, (0, "train")), 2)
        (outcome,) = reply_from(app(message, context(flatten(experiment)))).outcomes
        assert outcome.metrics["num-examples"] == examples
