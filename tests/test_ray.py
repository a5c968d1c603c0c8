"""A federation on Ray: the same as one process, for real, on actors of two CPUs of this machine."""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from tests.conftest import PATIENCE, wait_for

pytest.importorskip("ray", reason="Ray is not installed; pip install 'flsimulation[ray]'")

import ray
from flwr.simulation.ray_transport import ray_actor
from ray._private import worker

import flsimulation
from flsimulation import run
from flsimulation.cli.main import main
from flsimulation.client.workspace import Workspace
from flsimulation.clock import SystemClock, VirtualClock
from flsimulation.data.federated import FederatedData
from flsimulation.errors import InputError, RoundError, RunError
from flsimulation.events import ActorsAwaited, ClientReplied, RunStarted
from flsimulation.experiment import Experiment, flatten
from flsimulation.experiment.spec import Runtime
from flsimulation.internals.ray_actors import ends_of, is_ray_client, room_for, without_notices
from flsimulation.messages.batch import Batch, Task
from flsimulation.messages.codec import batch_of, message_of
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.runtimes.ray import actors as ray_actors
from flsimulation.runtimes.ray import client, starting
from flsimulation.runtimes.ray.actors import Actors, actors
from flsimulation.runtimes.ray.grid import RayGrid, run_on_actors
from flsimulation.runtimes.simulated import flower_identity
from flsimulation.studies.verify import Observed, compare

pytestmark = [
    pytest.mark.ray,
    # Ray drops the handles of its processes as it ends them
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

PACKAGE = Path(flsimulation.__file__).parent
Make = Callable[..., Experiment]

OWN = """
import contextlib, os, pathlib, signal, time
import torch, pytorch_lightning as pl
from torch import nn
from torch.nn import functional

class Net(pl.LightningModule):
    def __init__(self, raises="", dies="", waits="", gate=""):
        super().__init__()
        self.raises, self.dies, self.waits, self.gate = raises, dies, waits, gate
        self.layer = nn.Linear(6, 3, bias=False)  # before a norm its gradient is rounding only
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.layer(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.waits and bool((x[:, 0] == float(self.waits)).any()):
            while not pathlib.Path(self.gate).exists():
                time.sleep(0.05)
        if self.raises and bool((x[:, 0] == float(self.raises)).any()):
            raise ValueError("a strange example")
        if self.dies and len(x) > 2:  # two are only for practice
            with contextlib.suppress(FileExistsError):  # the first of all processes only
                pathlib.Path(self.dies).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", functional.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)
"""


def ray_processes(group: int) -> set[int]:
    """Rays of a group of processes."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_raylet = path.read_bytes().split(b"\0")[0].endswith(b"/raylet")
            if is_raylet and os.getpgid(int(path.parent.name)) == group:
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def pool() -> Iterator[Actors]:
    """Two actors on a Ray of three CPUs, which runs of this process use as well."""
    spec = Runtime(actors=2, return_wait=20.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", functools.partial(ray.init, num_cpus=3))
        with actors(spec, 4, functools.partial(client.prepare, {})) as ready:
            yield ready
    gc.collect()


def on_ray(pool: Actors, spec: Experiment, *sinks: Any) -> None:
    run_on_actors(pool, flatten(spec), spec, sinks, None, None)


def own_net(make_experiment: Make, path: Path, args: dict[str, Any], **tables: Any) -> Experiment:
    tree = make_experiment(train={"engine": "direct"}, **tables).model_dump(by_alias=True)
    return Experiment.model_validate({**tree, "model": {"class": f"{path}:Net", "args": args}})


def test_stacked_actors_give_what_one_process_gives(
    pool: Actors, make_experiment: Make, recorder: Any
) -> None:
    spec = make_experiment(
        data={"clients": 7, "partition": "linear"},
        train={"engine": "stacked"},
        strategy={"rounds": 3, "fraction-train": 0.75},
        evaluate={"clients": 3},
    )
    here, there = Observed(), Observed()
    run_in_process(spec, [here])
    on_ray(pool, spec, there, recorder)
    assert here.started is not None
    assert there.started is not None
    assert (here.started.engine, there.started.engine) == ("stacked", "stacked")
    apart: list[Any] = []
    compare(here, there, apart.append)
    assert [round.same_cohort for round in apart] == [True, True, True]
    assert apart[0].agrees  # from here on rounding grows; verify compares each round by itself
    cohorts = [e.cohort for e in there.rounds]
    assert cohorts == [e.cohort for e in here.rounds]
    assert {len(cohort) for cohort in cohorts} == {5}
    told = recorder.of(ClientReplied)
    assert all(e.reason is None for e in told)
    for e in there.rounds:
        trained = [t.partition for t in told if (t.round, t.phase) == (e.round, "train")]
        assert sorted(trained) == list(e.cohort)
    assert sorted(e.partition for e in told if e.phase == "final") == [0, 1, 2]
    assert [e.bytes for e in there.rounds] == [e.bytes for e in here.rounds]


@pytest.mark.parametrize("mode", ["central", "local", "example"])
def test_private_rounds_are_those_of_one_process(
    pool: Actors, make_experiment: Make, mode: str
) -> None:
    privacy = {"mode": mode, "noise-multiplier": 1.0, "delta": 0.01, "clip": 0.05}
    spec = make_experiment(
        data={"clients": 8}, strategy={"rounds": 3, "fraction-train": 0.5}, privacy=privacy
    )
    here, there = Observed(), Observed()
    run_in_process(spec, [here])
    on_ray(pool, spec, there)
    assert [e.cohort for e in there.rounds] == [e.cohort for e in here.rounds]
    assert [e.privacy for e in there.rounds] == [e.privacy for e in here.rounds]
    for number, model in here.models.items():
        for name, value in model.items():
            assert abs(value - there.models[number][name]).max() < 1e-5


def test_secure_aggregation_gives_what_one_process_gives_whichever_actor_a_phase_is_sent_to(
    pool: Actors, make_experiment: Make
) -> None:
    spec = make_experiment(
        data={"clients": 7, "partition": "linear"},
        train={"engine": "direct"},
        privacy={"secure-aggregation": True},
    )
    here, there = Observed(), Observed()
    run_in_process(spec, [here])
    on_ray(pool, spec, there)
    sizes = {"neighbours": 6, "threshold": 4}
    none = {"keys": 0, "shares": 0, "train": 0, "unmask": 0}
    assert [e.secure for e in there.rounds] == [{**sizes, **none}] * 2
    ours, theirs = here.rounds, there.rounds
    assert [e.weights_sha256 for e in theirs] == [e.weights_sha256 for e in ours]


def test_two_runs_on_as_many_actors_are_the_same_bit_for_bit(
    pool: Actors, make_experiment: Make
) -> None:
    first, second = Observed(), Observed()
    for record in (first, second):
        on_ray(pool, make_experiment(data={"clients": 6}), record)
    digests = [e.weights_sha256 for e in first.rounds]
    assert digests == [e.weights_sha256 for e in second.rounds]
    assert len(set(digests)) == 2


def test_transforms_draw_the_same_on_actors_as_in_one_process(
    pool: Actors, make_experiment: Make, own_modules: Callable[[str], Path]
) -> None:
    path = own_modules(
        "import torch\n\ndef train(x, generator):\n"
        "    return x + torch.randn(x.shape, generator=generator) + torch.rand(len(x), 1)\n\n"
        "def test(x):\n    return x + torch.rand(len(x), 1)\n"
    )
    names = {"transform": f"{path}:train", "evaluation-transform": f"{path}:test"}
    spec = make_experiment(data=names, train={"engine": "lightning"})
    here, there = Observed(), Observed()
    run_in_process(spec, [here])
    on_ray(pool, spec, there)
    assert compare(here, there) == []
    digests = [e.weights_sha256 for e in there.rounds]
    assert digests == [e.weights_sha256 for e in here.rounds]


def test_each_actor_gets_one_message_for_its_share_of_a_stacked_cohort(
    pool: Actors, make_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[list[int]] = []
    begin = pool.begin

    def watch(app: Any, models: Any, message: Message, context: Context, task: Any) -> bool:
        if begun := begin(app, models, message, context, task):
            whole = Message(RecordDict({**message.content, "arrays": ArrayRecord()}), 2, "train")
            shares.append([task.partition for task in batch_of(whole).tasks])
        return begun

    monkeypatch.setattr(pool, "begin", watch)
    spec = make_experiment(
        data={"clients": 5}, strategy={"rounds": 1, "fraction-evaluate": 0.0},
        evaluate={"clients": 0}, train={"engine": "stacked"},
    )  # fmt: skip
    on_ray(pool, spec)
    assert sorted(shares) == [[0, 2, 4], [1, 3]]


def test_a_strategy_that_needs_each_clients_model_gets_it(
    pool: Actors, make_experiment: Make
) -> None:
    spec = make_experiment(strategy={"name": "fedadam"})
    here, there = Observed(), Observed()
    run_in_process(spec, [here])
    on_ray(pool, spec, there)
    assert compare(here, there) == []
    assert len(there.models) == 2


def test_one_by_one_where_a_module_cannot_be_stacked_and_one_that_raises_is_named(
    pool: Actors,
    make_experiment: Make,
    own_modules: Any,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a process that is connected to Ray had better not be forked
    path = own_modules(OWN)
    data = FederatedData.load(make_experiment())
    strange = repr(float(data.dataset.x_train[data.train_indices(2)[0], 0]))
    spec = own_net(make_experiment, path, {"raises": strange})
    here, there = Observed(), Observed()
    run_in_process(spec, [here], Workspace.load(spec, processes=1))
    on_ray(pool, spec, there, recorder)
    assert [e.engine for e in recorder.of(RunStarted)] == ["direct"]
    assert compare(here, there) == []
    assert [e.failures for e in there.rounds] == [{"error": 1}] * 2
    failed = [e for e in recorder.of(ClientReplied) if e.reason]
    assert {(e.partition, e.reason) for e in failed} == {(2, "error")}
    assert failed[0].error is not None
    assert failed[0].error.startswith("ValueError: a strange example (own.py:")


class Jumping(SystemClock):
    """The machine's clock, but that deadlines are over when the test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_client_that_is_not_done_by_the_deadline_is_left_out(
    pool: Actors, make_experiment: Make, own_modules: Any, tmp_path: Path
) -> None:
    tables: dict[str, Any] = {
        "data": {"clients": 12, "validation-fraction": 0.0},
        "strategy": {"rounds": 1, "fraction-evaluate": 0.0},
        "evaluate": {"clients": 0},
        "round": {"deadline": PATIENCE},
    }
    gate, clock = tmp_path / "gate", Jumping()
    data = FederatedData.load(make_experiment(**tables))
    waits = repr(float(data.dataset.x_train[data.train_indices(2)[0], 0]))
    args = {"waits": waits, "gate": str(gate)}
    record, answered = Observed(), list[int]()

    def let_time_pass(event: Any) -> None:
        if isinstance(event, ClientReplied) and event.reason is None:
            answered.append(event.partition)
            clock.now = PATIENCE if len(answered) == 11 else 0.0

    try:
        spec = own_net(make_experiment, own_modules(OWN), args, **tables)
        space, sinks = Workspace.load(spec, clock=clock), [record, let_time_pass]
        run_on_actors(pool, flatten(spec), spec, sinks, space, None)
    finally:
        gate.touch()
    assert sorted(answered) == [0, 1, *range(3, 12)]
    (finished,) = record.rounds
    assert finished.failures == {"deadline": 1}


def test_a_lost_actors_clients_are_lost_and_the_next_round_has_the_actor_again(
    pool: Actors,
    make_experiment: Make,
    own_modules: Any,
    recorder: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flag = tmp_path / "died"
    spec = own_net(make_experiment, own_modules(OWN), {"dies": str(flag)})
    record = Observed()
    on_ray(pool, spec, record, recorder)
    assert flag.exists()
    first, second = record.rounds
    assert first.failures == {"lost": 1}
    assert second.failures == {}
    (lost,) = (e for e in recorder.of(ClientReplied) if e.reason)
    assert (lost.round, lost.reason) == (1, "lost")
    assert lost.error == "its Ray actor, or the actor's machine, was lost"
    wait_for("the actor that Ray starts anew", lambda: pool.finished(1.0) or pool.count == 2)
    assert pool.count == 2
    assert capfd.readouterr() == ("", "")


def test_without_any_actor_all_clients_are_lost(make_experiment: Make) -> None:
    spec = make_experiment()
    with pytest.raises(
        RoundError, match="0 of 4 clients succeeded, 1 needed; all 4 clients: no Ray"
    ):
        on_ray(NoActors(), spec)


class NoActors(Actors):
    """All of them gone."""

    def __init__(self) -> None:
        super().__init__([], 0.0)

    def put(self, record: ArrayRecord) -> Any:
        return None


class Listening(Actors):
    """One actor that never answers; what it gets is kept."""

    def __init__(self) -> None:
        super().__init__([], 0.0)
        self.held: list[ArrayRecord] = []
        self.messages: list[Message] = []

    @property
    def count(self) -> int:
        return 1

    def put(self, record: ArrayRecord) -> Any:
        self.held.append(record)
        return len(self.held) - 1

    def begin(self, app: Any, models: Any, message: Message, context: Context, task: Any) -> bool:
        found = {name: self.held[place] for name, place in models.items()}
        message.content = RecordDict({**message.content, **found})
        self.messages.append(message)
        return True


def batch_for(clients: int, model: ArrayRecord) -> Batch:
    config = ConfigRecord({"a": 1})
    return Batch(model, [Task(partition, "train", 1, config) for partition in range(clients)])


def test_a_model_of_many_shares_goes_to_ray_once() -> None:
    grid = RayGrid(listening := Listening(), 9, {}, together=False)
    one, other = ArrayRecord(), ArrayRecord()
    with flower_identity():
        parts = [part for model in (one, other) for part in grid.divided(batch_for(8, model))]
        ids = list(grid.push_messages([message_of(part, node or 0) for node, part in parts]))
    assert listening.held == [one, other]
    assert [len(batch_of(message).tasks) for message in listening.messages] == [2] * 8
    assert [m.metadata.message_id for m in listening.messages] == ids
    assert all(batch_of(message).model is one for message in listening.messages[:4])
    assert [dict(batch_of(m).tasks[0].config) for m in listening.messages] == [{"a": 1}] * 8


class Busy(Listening):
    """Its only actor works on something else."""

    def begin(self, *_: Any) -> bool:
        return False

    def free(self, grid: RayGrid) -> list[int]:
        """Let the actor take all that waits; returns the partitions of the tasks."""
        self.begin = functools.partial(Listening.begin, self)  # type: ignore[method-assign]
        grid.push_messages([])
        return [task.partition for message in self.messages for task in batch_of(message).tasks]


def test_shares_that_nobody_waits_for_any_more_are_dropped() -> None:
    clock = VirtualClock()
    grid = RayGrid(busy := Busy(), 2, {}, together=True, clock=clock)
    with flower_identity():
        first, second = (
            Batch(ArrayRecord(), [Task(partition, "train", 1, ConfigRecord())])
            for partition in (0, 1)
        )
        grid.push_messages([message_of(first, 2, PATIENCE, clock)])
        clock.sleep(PATIENCE + 1)
        grid.push_messages([message_of(second, 3, 3 * PATIENCE, clock)])
        assert busy.free(grid) == [1]


@pytest.mark.parametrize(("ttl", "told"), [(100.0, 99.0), (5.0, 4.5)])
def test_actors_give_up_in_time_for_their_answer_to_arrive(ttl: float, told: float) -> None:
    grid = RayGrid(listening := Listening(), 1, {}, together=True)
    with flower_identity():
        grid.push_messages([message_of(batch_for(1, ArrayRecord()), 2, ttl)])
    assert [message.metadata.ttl for message in listening.messages] == [told]


@pytest.mark.parametrize(
    ("clients", "sizes"), [(3, [1, 1, 1]), (9, [2, 2, 2, 2, 1]), (100, [10] * 10)]
)
def test_one_by_one_clients_go_in_shares_that_let_no_actor_wait_long(
    clients: int, sizes: list[int]
) -> None:
    grid = RayGrid(NoActors(), clients, {}, together=False)
    shares = [part.tasks for _, part in grid.divided(batch_for(clients, ArrayRecord()))]
    assert [len(share) for share in shares] == sizes
    assert [task.partition for share in shares for task in share] == list(range(clients))


def test_what_flower_has_for_its_actors_is_still_what_we_use() -> None:
    run_of = inspect.signature(ray_actor.VirtualClientEngineActor.run).parameters
    assert list(run_of)[1:5] == ["client_app_fn", "message", "cid", "context"]
    made = ray_actor.ClientAppActor.__ray_metadata__.modified_class
    assert "on_actor_init_fn" in inspect.signature(made.__init__).parameters
    assert ray_actor.ClientAppActor.__ray_metadata__.class_name == "ClientAppActor"
    own = ray_actor.VirtualClientEngineActor()
    with flower_identity():
        message = Message(RecordDict(), 2, "query")
    answer = Message(RecordDict({"m": MetricRecord({"n": 1})}), reply_to=message)
    context = Context(1, 2, {}, RecordDict(), {})
    given = own.run(lambda: lambda message, context: answer, message, "cid", context)
    assert given == ("cid", answer, context)


def test_ray_prints_through_the_function_that_is_replaced_and_put_back() -> None:
    printing = worker.print_to_stdstream
    source = inspect.getsource(worker.listen_error_messages)
    assert "            print_to_stdstream(\n" in source  # looked up each time, without an import
    with without_notices():
        assert worker.print_to_stdstream({"lines": ["lost"]}, ignore_prefix=False) is None
    assert worker.print_to_stdstream is printing


def test_ray_still_counts_how_often_an_actor_was_started_again(pool: Actors) -> None:
    from ray._private import state

    known = state.actors()
    assert pool.count >= 2, "for ends_of: an actor that never starts ends a run"
    alive = [actor for actor in known.values() if actor["State"] == "ALIVE"]
    assert {int(actor["NumRestarts"]) for actor in alive} <= {0, 1}  # one was killed before
    assert ends_of([]) == []
    assert not is_ray_client()


def test_flower_still_counts_how_many_actors_there_is_room_for(pool: Actors) -> None:
    room = ray_actor.pool_size_from_resources
    assert room({"num_cpus": 0.5, "num_gpus": 0.0}) == 6
    with pytest.raises(ValueError, match="ActorPool is empty"):
        room({"num_cpus": 1.0, "num_gpus": 1.0})
    assert room_for({"num_cpus": 0.5, "num_gpus": 0.0}) == 6
    assert room_for({"num_cpus": 1.0, "num_gpus": 1.0}) == 0


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"actors": 4}, "4 of 1 CPUs and 0 GPUs do not fit, Ray has 3 CPUs and 0 GPUs, room for 3"),
        ({"actor-gpus": 0.5}, "not even 1 of 1 CPUs and 0.5 GPUs do not fit, Ray has 3 CPUs and 0"),
        (
            {"actors": 1, "actor-cpus": 2, "client-wait": 0.5},
            "0 of 1 started within 0.5 s, other programs use this Ray's CPUs or GPUs; lower",
        ),
    ],
)
def test_too_many_actors_are_refused(
    pool: Actors, make_experiment: Make, tmp_path: Path, keys: dict[str, Any], line: str
) -> None:
    spec = make_experiment(runtime={"kind": "ray", **keys})
    with pytest.raises(InputError) as caught:
        run(spec, tmp_path / "run")
    assert str(caught.value).startswith(f"runtime.actors: {line}")
    assert not (tmp_path / "run").exists()


def test_actors_that_ray_has_room_for_may_take_as_long_as_they_take(
    pool: Actors, make_experiment: Make, recorder: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    wait_for("room for a third actor", lambda: ray.available_resources().get("CPU", 0) >= 1)
    monkeypatch.setattr(starting, "_SAID_SECONDS", 0.0)
    spec = make_experiment(runtime={"kind": "ray", "actors": 1, "client-wait": 0.0})
    assert run(spec, tmp_path / "run", [recorder]).state == "completed"
    first = recorder.events[0]
    assert first == ActorsAwaited(0, 1, first.seconds, patience=None)
    assert [e.expected for e in recorder.of(ActorsAwaited)] == [1] * len(recorder.of(ActorsAwaited))


def test_an_actor_whose_process_ends_each_time_it_starts_is_no_actor(pool: Actors) -> None:
    prepare = functools.partial(exec, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with (
        pytest.raises(RunError, match="its process ended each time, most likely out of memory"),
        actors(Runtime(actors=1), 1, prepare),
    ):
        pass


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    assert isinstance(done.value.code, int)
    return done.value.code


@pytest.mark.parametrize("verb", ["run", "verify"])
def test_without_ray_one_line_says_what_to_install(
    verb: str,
    experiment_file: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = str(experiment_file())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [n for n in sys.modules if n.endswith((".ray.actors", ".ray_actors"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("flsimulation.runtimes.ray.actors")
    monkeypatch.delattr("flsimulation.internals.ray_actors")
    assert status_of(verb, file, "--runtime", "ray") == 2
    assert capsys.readouterr().err == (
        "flsim: runtime.kind 'ray' needs Ray, which is not installed; "
        "pip install 'flsimulation[ray]', or choose 'inprocess'\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.toml"]


def imported(statement: ast.stmt) -> set[str]:
    """Modules, and what may be modules, of an import."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    if isinstance(statement, ast.ImportFrom):
        own = statement.module or ""
        return {own} | {f"{own}.{alias.name}" for alias in statement.names}
    return set()


def test_three_modules_need_ray_and_others_import_them_only_inside_functions() -> None:
    three = {f"flsimulation.runtimes.ray.{name}" for name in ("actors", "starting")}
    three |= {"flsimulation.internals.ray_actors"}
    needing, at_once = set(), set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        names = {m for n in ast.walk(tree) if isinstance(n, ast.stmt) for m in imported(n)}
        if any(name.split(".")[0] == "ray" or "ray_transport" in name for name in names):
            needing.add(module)
        if any(name in three for statement in tree.body for name in imported(statement)):
            at_once.add(module)
    assert needing == three
    assert at_once == {f"flsimulation.runtimes.ray.{name}" for name in ("actors", "starting")}


def test_an_address_where_no_ray_answers_is_named(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port}"
    monkeypatch.setattr(ray_actors, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(InputError) as caught:
        ray_actors._require_listener(f"ray://{address}")
    assert str(caught.value) == (
        f"runtime.ray-address 'ray://{address}': no Ray answers there; start one with "
        f"`ray start --head`, or leave it empty for one on this machine"
    )


@pytest.mark.parametrize("address", ["here", "http://10.0.0.1:1", "10.0.0.1"])
def test_what_is_no_address_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("run", "--set", f"runtime.ray-address={address}") == 2
    assert capsys.readouterr().err == (
        f"flsim: --set runtime.ray-address={address}: runtime.ray-address must be empty, auto, "
        f"host:port or ray://host:port, got {address!r}\n"
    )


def test_one_process_is_not_compared_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("verify", "--runtime", "inprocess") == 2
    assert capsys.readouterr().err == (
        "flsim: --runtime inprocess: choose ray or network, which is compared with one process\n"
    )


def flsim(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flsimulation", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # see "&" of a shell
    )  # fmt: skip


def test_verify_compares_one_process_with_ray_round_by_round(
    pool: Actors, experiment_file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment_file(
        "[strategy]\nrounds = 4\nfraction-train = 0.75\n[runtime]\nactors = 1",
        data='partition = "linear"',
    )
    assert status_of("verify", str(file), "--runtime", "ray") == 0
    said = capsys.readouterr()
    head, _, *rounds, last = said.out.splitlines()
    assert (head, said.err) == ("test: in one process and on a local Ray", "")
    assert [line.split()[:2] for line in rounds] == [[f"{n}", "same"] for n in (1, 2, 3, 4)]
    assert last.startswith("agree: 4 rounds, ")


def test_ctrl_c_ends_the_run_and_the_ray_that_it_started(
    experiment_file: Any, tmp_path: Path
) -> None:
    file = experiment_file("[strategy]\nrounds = 20000\n[runtime]\nactors = 1")
    out = tmp_path / "run"
    going = flsim("run", str(file), "--runtime", "ray", "--out", str(out), folder=tmp_path)
    rounds = out / "rounds.jsonl"
    wait_for(
        "the first round",
        lambda: going.poll() is not None or (rounds.exists() and rounds.stat().st_size),
    )
    assert going.poll() is None, going.communicate()
    (raylet,) = ray_processes(going.pid)
    os.killpg(going.pid, signal.SIGINT)  # as a terminal does: to Ray's processes too
    stdout, stderr = going.communicate(timeout=PATIENCE)
    assert (going.returncode, stderr) == (130, "")
    assert stdout.splitlines()[-1] == f"Resume  flsim run --resume {out}"
    wait_for("the end of Ray", lambda: not Path(f"/proc/{raylet}").exists())
