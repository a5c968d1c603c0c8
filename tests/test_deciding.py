"""The choice of an engine: true reasons, no trace that takes longer than the work, shown and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from flsimulation import run
from flsimulation.cli.view import LiveView, PlainView
from flsimulation.client.workspace import Workspace
from flsimulation.clock import VirtualClock
from flsimulation.events import EngineChoosing, RunFinished
from flsimulation.experiment.spec import Train
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.training import Batches
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.plan import Plan
from flsimulation.training.stacked.trainer import StackedTrainer
from flsimulation.training.work import Calls, Work

LENGTH, WIDTH = 4, 6
RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(40, LENGTH, WIDTH)), dtype=torch.float32)
Y = torch.tensor(RNG.integers(3, size=40))


class Sequential(pl.LightningModule):
    """A classifier of sequences, with any encoder to one vector."""

    def __init__(self, act: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.act = act
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Linear(WIDTH, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.head(self.act(self, batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def looped(module: Any, x: Tensor) -> Tensor:
    h = torch.zeros(len(x), WIDTH)
    for t in range(x.shape[1]):
        h = module.cell(x[:, t], h)
    return h


def kept(module: Any, x: Tensor) -> Tensor:
    h, every = torch.zeros(len(x), WIDTH), torch.zeros(len(x), x.shape[1], WIDTH)
    for t in range(x.shape[1]):
        h = module.cell(x[:, t], h)
        every[:, t] = h
    return every.mean(1)


def two_states(module: Any, x: Tensor) -> Tensor:
    state = torch.zeros(len(x), WIDTH), torch.zeros(len(x), WIDTH)
    for t in range(x.shape[1]):
        state = module.cell(x[:, t], state)
    return state[0]


def causal(module: Any, x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(x, x, module.v(x), is_causal=True).mean(1)


def bag(module: Any, x: Tensor) -> Tensor:
    return module.bag((x[..., 0] > 0).long())


def encoder(**named: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, **named)


STACKED: dict[str, Callable[[], pl.LightningModule]] = {
    "gru": lambda: Sequential(looped, cell=nn.GRUCell(WIDTH, WIDTH)),
    "gru without bias": lambda: Sequential(looped, cell=nn.GRUCell(WIDTH, WIDTH, bias=False)),
    "rnn": lambda: Sequential(looped, cell=nn.RNNCell(WIDTH, WIDTH)),
    "lstm": lambda: Sequential(two_states, cell=nn.LSTMCell(WIDTH, WIDTH)),
    "kept": lambda: Sequential(kept, cell=nn.GRUCell(WIDTH, WIDTH)),
    "dropout of 0": lambda: Sequential(lambda m, x: m.drop(x).mean(1), drop=nn.Dropout(0.0)),
    "dropout": lambda: Sequential(lambda m, x: m.e(x).mean(1), e=encoder(dropout=0.1)),
    "encoder": lambda: Sequential(lambda m, x: m.e(x).mean(1), e=encoder(dropout=0.0)),
    "causal": lambda: Sequential(causal, v=nn.Linear(WIDTH, WIDTH)),
    "bag": lambda: Sequential(bag, bag=nn.EmbeddingBag(2, WIDTH)),
}


def clients() -> list[Batches]:
    sizes = (17, 9, 8)
    ends = np.cumsum(sizes)
    parts = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [Batches(X, Y, part, 4, lambda: np.random.default_rng(1)) for part in parts]


@pytest.mark.seconds
@pytest.mark.parametrize("kind", STACKED)
def test_what_vmap_has_no_form_for_is_written_out(kind: str) -> None:
    torch.manual_seed(0)
    module, spec = STACKED[kind](), Train(epochs=2, batch_size=4)
    trainer, alone = StackedTrainer(module, spec, X, Y), LocalTrainer(module, spec)
    for wave in trainer.fit(module.state_dict(), clients(), [lambda: 1] * len(clients())):
        for place, client in enumerate(wave.clients):
            theirs = alone.fit(module.state_dict(), clients()[client], seed=1).state
            for name, value in wave.state(place).items():
                assert (value - theirs[name]).norm() <= 1e-5 * theirs[name].norm(), name


def write_elsewhere(module: Any, x: Tensor) -> Tensor:
    module.kept[:] = x[0]
    return x.mean(1)


REASONS: dict[str, tuple[Callable[[], pl.LightningModule], str]] = {
    "no form": (
        lambda: Sequential(lambda m, x: torch.renorm(x, 2, 0, 1.0).mean(1)),
        r"PyTorch's vmap cannot take renorm of many clients at once \(test_deciding\.py:\d+\)",
    ),
}


@pytest.mark.seconds
@pytest.mark.parametrize("kind", REASONS)
def test_reasons_name_the_cause(kind: str) -> None:
    make, reason = REASONS[kind]
    module = make()
    with pytest.raises(NotStackable, match=reason):
        StackedTrainer(module, Train(batch_size=4), X, Y)


def test_a_tensor_outside_of_the_step_is_not_called_a_buffer() -> None:
    module = Sequential(write_elsewhere)
    module.kept = torch.zeros(LENGTH, WIDTH)
    with pytest.raises(NotStackable) as caught:
        StackedTrainer(module, Train(batch_size=4), X, Y)
    assert "buffer" not in str(caught.value)
    assert "test_deciding.py:" in str(caught.value)


def test_few_steps_are_not_worth_a_trace_and_rare_sizes_no_program() -> None:
    # 500 x 50 = 25,000 against half of 10 x 100 for the fits and 613 x (30 + 50) for the steps
    plain, writing = (Calls(50, writes, alone=50) for writes in (False, True))
    assert Work(rounds=10, fits=10, steps=613).is_worth_tracing(plain)
    assert not Work(rounds=10, fits=10, steps=612).is_worth_tracing(plain)
    assert not Work(rounds=10, fits=10, steps=987).is_worth_tracing(writing)
    assert Work(rounds=10, fits=10, steps=988).is_worth_tracing(writing)
    # in two processes half of that, and 2 x 2,000 for their start
    assert not Work(rounds=10, fits=10, steps=1137, processes=2).is_worth_tracing(plain)
    assert Work(rounds=10, fits=10, steps=1138, processes=2).is_worth_tracing(plain)
    assert Work(rounds=1, fits=1, steps=1, decided=True).is_worth_tracing(plain)
    # on a GPU 25,000 against 1.5 times as much
    assert not Work(rounds=10, fits=10, steps=195, gpu=True).is_worth_tracing(plain)
    assert Work(rounds=10, fits=10, steps=196, gpu=True).is_worth_tracing(plain)
    shared = Work(rounds=10, fits=30, steps=4799, gpu=True)
    assert (shared.is_worth_a_choice(100), shared.is_worth_a_choice(99)) == (False, True)
    assert shared.is_worth_a_program(1)
    assert not Work(rounds=9, fits=27, steps=900, gpu=True).is_worth_a_program(1)
    work = Work(rounds=10, fits=30, steps=1000)
    assert (work.is_worth_a_program(2), work.is_worth_a_program(3)) == (False, True)
    # batches of 4, 4, 4, 4, 1 - of 4, 4, 1 - of 4, 4, each twice: three steps of all three
    # clients, seven of one client's four examples, four of one client's one
    plan = Plan(clients(), 2)
    once = Work(rounds=1, fits=3, steps=20)
    assert plan.rare(None) == frozenset()
    assert plan.rare(once) == {(3, 4), (1, 4), (1, 1)}
    assert plan.rare(Work(rounds=5, fits=15, steps=100)) == {(3, 4), (1, 1)}
    assert plan.rare(Work(rounds=10, fits=30, steps=200)) == frozenset()
    assert plan.rare(Work(rounds=5, fits=30, steps=200), waves=2) == frozenset()  # of each round


class Told:
    """A sink that keeps the events of the choice and of the end."""

    def __init__(self) -> None:
        self.doing: list[EngineChoosing] = []
        self.end: RunFinished | None = None

    def __call__(self, event: Any) -> None:
        if isinstance(event, EngineChoosing):
            self.doing.append(event)
        elif isinstance(event, RunFinished):
            self.end = event


@pytest.mark.seconds
def test_a_tiny_run_is_not_traced_and_says_so(make_experiment: Any) -> None:
    told = Told()
    short = make_experiment(strategy={"rounds": 1}, train={"batch-size": 64})
    space = Workspace.load(short, sinks=[told])
    assert (space.engine.name, told.doing) == ("direct", [])
    assert str(space.engine.why_not).startswith("4 training steps in all are too few")
    assert Workspace.load(make_experiment(strategy={"rounds": 200})).engine.name == "stacked"
    asked = make_experiment(strategy={"rounds": 1}, train={"engine": "stacked"})
    assert Workspace.load(asked).engine.name == "stacked"


@pytest.mark.seconds
def test_the_choice_is_told_and_counted(make_experiment: Any, tmp_path: Path) -> None:
    told = Told()
    spec = make_experiment(strategy={"rounds": 1}, train={"engine": "stacked"})
    run(spec, tmp_path / "run", [told])
    assert [event.doing for event in told.doing] == [
        "tracing the training step",
        "comparing many clients' step with one client's",
        "trying sizes of a batch",
    ]
    assert told.end is not None
    assert 0 < told.doing[-1].seconds <= told.end.choosing < told.end.seconds
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["choosing-seconds"] == told.end.choosing
    assert manifest["seconds"] == told.end.seconds


@pytest.mark.seconds
def test_seconds_begin_with_the_choice(make_experiment: Any) -> None:
    class Slow(VirtualClock):
        """Every look at it takes a second."""

        def monotonic(self) -> float:
            self.sleep(1.0)
            return super().monotonic()

    spec, told = make_experiment(strategy={"rounds": 1}, train={"engine": "lightning"}), Told()
    space = Workspace.load(spec, clock=Slow())
    assert space.choosing == 1.0
    import dataclasses

    run_in_process(spec, [told], dataclasses.replace(space, clock=VirtualClock(), choosing=7.0))
    assert told.end is not None
    assert (told.end.seconds, told.end.choosing) == (7.0, 7.0)


def test_a_choice_that_takes_long_is_one_line(
    make_experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    view = PlainView(Console(), make_experiment())
    for seconds in (0.0, 1.9):
        view(EngineChoosing("tracing the training step", seconds))
    assert capsys.readouterr().out == ""
    for seconds in (2.4, 5.0):
        view(EngineChoosing("trying sizes of a batch", seconds))
    line = "  choosing how to train: trying sizes of a batch, 2 s so far\n"
    assert capsys.readouterr().out == line
    view(RunFinished("completed", 1, 12.34, choosing=3.21))
    assert "rounds in 12.3 s (of which 3.2 s choosing how to train)" in capsys.readouterr().out
    view(RunFinished("completed", 1, 12.34, choosing=0.01))
    assert "choosing" not in capsys.readouterr().out


def test_a_terminal_shows_what_the_choice_does(make_experiment: Any) -> None:
    console = Console(force_terminal=True, width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file, LiveView(console, make_experiment()) as view:
        view(EngineChoosing("tracing the training step", 0.0))
        view._progress.refresh()
        assert "choosing how to train: tracing the training step" in console.export_text()
