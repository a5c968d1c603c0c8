"""What is done on a GPU, with stand-ins for it: no test here needs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from flsimulation.client.workspace import Workspace
from flsimulation.experiment.spec import Train
from flsimulation.training import Batches, Job, Terms, engine_for
from flsimulation.training.products import in_tf32
from flsimulation.training.stacked.room import Room, kept_on, room_on_gpu

X = torch.tensor(np.random.default_rng(0).normal(size=(48, 6)), dtype=torch.float32)
Y = torch.tensor(np.arange(48) % 3)
GPU = torch.device("meta")
"""Stands for a GPU: tensors move there, and are not on the CPU any more."""


class Memory:
    """Stands for a GPU's memory, as PyTorch reports it."""

    def __init__(self, free: int) -> None:
        self.free, self.held, self.peak = free, 500, 0

    def take(self, size: int) -> None:
        self.peak = max(self.peak, self.held + size)

    def reset(self, _: object) -> None:
        self.peak = self.held


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    own = Memory(100_000)
    for name, what in {
        "memory_allocated": lambda _: own.held,
        "max_memory_allocated": lambda _: own.peak,
        "reset_peak_memory_stats": own.reset,
        "mem_get_info": lambda _: (own.free, 1 << 40),
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, what)
    return own


class Programs:
    """Stand for a step's programs: what they take of a memory."""

    def __init__(
        self, memory: Memory, made: Callable[[int], int], run: Callable[[int], int]
    ) -> None:
        self.memory, self.made, self.run = memory, made, run

    def given(self, clients: int, examples: int) -> tuple[int, int]:
        return clients, examples

    def program(self, clients: int, examples: int, rates: Any) -> Callable[..., None]:
        assert (examples, rates) == (32, (0.1,))
        self.memory.take(self.made(clients))
        return lambda *_: self.memory.take(self.run(clients))


@pytest.mark.parametrize(
    ("made", "run", "room"),
    [
        (lambda n: 180 * n, lambda n: 1000 + 70 * n, (50_000, 1000, 70)),  # a workspace
        (lambda n: 2000 * n, lambda n: 1000 + 70 * n, (50_000, 0, 2000)),  # the comparison
        (lambda n: 300, lambda n: 200, (50_000, 300, 0)),
    ],
)
def test_a_clients_memory_is_the_slope_of_what_programs_take_at_most(
    memory: Memory, made: Any, run: Any, room: tuple[int, int, int]
) -> None:
    programs: Any = Programs(memory, made, run)
    assert room_on_gpu(programs, 32, (0.1,), GPU) == Room(*room)


def test_clients_have_room_beside_what_a_step_takes_anyway() -> None:
    assert Room(50_000, 1000, 70).clients(parameters=420) == 100
    assert Room(1000, 2000, 70).clients(parameters=420) == 1
    assert Room(1000).clients(parameters=0) == 1000


def test_a_part_of_a_data_set_is_kept_on_a_gpu_that_has_room(memory: Memory) -> None:
    size = X.nbytes + Y.nbytes
    for free, device in ((8 * size, "meta"), (8 * size - 1, "cpu")):
        memory.free = free
        assert [part.device.type for part in kept_on(GPU, 8, X, Y)] == [device] * 2  # type: ignore[union-attr]
    named, _ = kept_on(GPU, 1, {"a": X}, Y)
    assert named["a"].device.type == "meta"
    assert kept_on(torch.device("cpu"), 1, X, Y)[0] is X


class Recording(pl.LightningModule):
    """Notes in which precision a GPU would multiply, where the optimizer steps and in evaluations."""

    seen: list[tuple[Any, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def note(self, where: str) -> None:
        type(self).seen.append((where, *precision()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("evaluate")
        self.log("val_loss", functional.cross_entropy(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)

        def factor(epoch: int) -> float:
            if epoch:
                self.note("train")
            return 1.0

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]


def precision() -> tuple[Any, ...]:
    """Of products, convolutions and recurrent layers, and whether sums have a fixed order."""
    backends: Any = torch.backends
    cudnn = backends.cudnn
    kinds = backends.cuda.matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn
    last = cudnn.allow_tf32, cudnn.deterministic
    return torch.get_float32_matmul_precision(), *(kind.fp32_precision for kind in kinds), *last


@pytest.mark.seconds
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("engine", ["stacked", "direct", "lightning"])
@pytest.mark.parametrize(("tf32", "gpu"), [(True, True), (True, False), (False, True)])
def test_products_are_rounded_to_tf32_on_a_gpu_if_asked_and_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch, engine: Any, tf32: bool, gpu: bool
) -> None:
    monkeypatch.setattr("flsimulation.training.products.takes_gpu", lambda _: gpu)
    monkeypatch.setattr(Recording, "seen", [], raising=False)
    before, module = precision(), Recording()
    spec = Train(batch_size=4, engine=engine, device="cpu", tf32=tf32)
    own = engine_for(module, spec, X, Y, 4)
    parts = [Batches(X, Y, rows, 100) for rows in np.arange(48).reshape(4, 12)]
    jobs = [Job(place, batches, lambda: 0, round=1) for place, batches in enumerate(parts)]
    for _ in own.fit(module.state_dict(), jobs, Terms()):
        assert precision() == before
    list(own.evaluate(module.state_dict(), jobs))  # compared
    Recording.seen = [*Recording.seen, ("then",)]
    list(own.evaluate(module.state_dict(), jobs))  # together
    for _ in own.evaluate(module.state_dict(), jobs[:1]):  # alone
        assert precision() == before
    assert precision() == before
    places = [where for where, *_ in Recording.seen]
    last = Recording.seen[places.index("then") + 1 :]
    found = {*Recording.seen[: places.index("evaluate")], *last}
    assert before == ("highest", "none", "none", "tf32", "tf32", True, False)  # PyTorch's
    rounded = ("high", *["tf32"] * 4, True, True)
    exact = ("highest", *["none"] * 4, False, True)
    wanted = (rounded if tf32 else exact) if gpu else before
    assert found == {("train", *wanted), ("evaluate", *wanted)}


def test_a_setting_of_the_users_own_is_left_also_after_an_error() -> None:
    before = precision()
    backends: Any = torch.backends
    try:
        torch.set_float32_matmul_precision("medium")
        own = precision()
        with pytest.raises(ZeroDivisionError), in_tf32(True):
            1 / (precision()[0] != "high")
        assert precision() == own
        with in_tf32(False):
            assert precision()[:2] == own[:2]
        assert precision() == own
        with in_tf32(None):
            assert precision() == own
    finally:
        torch.set_float32_matmul_precision(before[0])
        backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision = before[1:3]


@pytest.mark.seconds
def test_the_test_set_is_moved_to_a_gpu_once(
    make_experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = list[str]()

    def kept(device: torch.device, share: int, x: Any, y: Any) -> Any:
        moved.append(device.type)
        return x, y

    monkeypatch.setattr("flsimulation.client.workspace.kept_on", kept)
    for gpu, device in ((False, "cpu"), (True, "cuda")):
        space = Workspace.load(make_experiment())
        monkeypatch.setattr("flsimulation.client.workspace.takes_gpu", lambda _, gpu=gpu: gpu)
        moved.clear()
        scores = [space.test_scores(space.initial_state(), round) for round in (1, 2)]
        assert scores[0] == scores[1]
        assert moved == [device]
