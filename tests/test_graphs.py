"""Steps that a GPU repeats as graphs, with a stand-in that records on the CPU: the same bits as call by call."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tests.recording import Noted
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from flsimulation.cli.title import engine_line
from flsimulation.experiment.spec import Train
from flsimulation.host.warned import collected
from flsimulation.training import Batches, Before, Job, Terms, engine_for
from flsimulation.training.stacked.compiler.program import StepPrograms
from flsimulation.training.stacked.graphs import CudaRecorder
from flsimulation.training.stacked.trainer import StackedTrainer
from flsimulation.training.work import Work

pytestmark = [pytest.mark.seconds, pytest.mark.usefixtures("one_thread", "one_trace")]

X = torch.tensor(np.random.default_rng(0).normal(size=(160, 6)), dtype=torch.float32)
Y = torch.tensor(np.arange(160) % 3)
ALIKE, UNEVEN = (30, 30, 30), (34, 30, 22)
SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
Optimizing = Callable[[nn.Module], Any]


TRACES: dict[Any, StepPrograms] = {}


@pytest.fixture
def one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that differ in their optimizer alone share a trace and its programs."""

    def programs(
        module: Any, x: Tensor, y: Tensor, *rest: Any, scaled: bool = False
    ) -> StepPrograms:
        own = next(module.parameters())
        key = str(module), own.dtype, own.device, scaled
        if key not in TRACES:
            TRACES[key] = StepPrograms(module, x, y, *rest, scaled=scaled)
        return TRACES[key]

    monkeypatch.setattr("flsimulation.training.stacked.trainer.StepPrograms", programs)


class Net(pl.LightningModule):
    """Dropout, statistics of batches, and a number of the fit; no gradient is nothing but roundings."""

    def __init__(self, optimizing: Optimizing) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(
                nn.Linear(6, 8, bias=False),
                nn.BatchNorm1d(8),
                nn.Tanh(),
                nn.Dropout(0.3),
                nn.Linear(8, 3),
            )
        )
        self.optimizing = optimizing

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("twice", 2 * loss)
        return loss / (1 + self.current_epoch)

    def configure_optimizers(self) -> Any:
        return self.optimizing(self)


class Rows(Net):
    """A recurrent network of two layers, whose dropout cuDNN draws inside one call."""

    def __init__(self, dropout: float) -> None:
        super().__init__(of(SGD, lr=0.1))
        self.layers, self.head = nn.GRU(2, 5, 2, batch_first=True, dropout=dropout), nn.Linear(5, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits: Tensor = self.head(self.layers(batch[0].view(-1, 3, 2))[0][:, -1])
        return functional.cross_entropy(logits, batch[1])


class Attending(Net):
    """Attention, whose dropout a GPU's faster kernels draw inside."""

    def __init__(self, dropout: float) -> None:
        super().__init__(of(SGD, lr=0.1))
        self.layers = nn.MultiheadAttention(2, 1, dropout, batch_first=True)
        self.head = nn.Linear(6, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].view(-1, 3, 2)
        logits: Tensor = self.head(self.layers(x, x, x, need_weights=False)[0].flatten(1))
        return functional.cross_entropy(logits, batch[1])


def of(cls: Any, **options: Any) -> Optimizing:
    return lambda module: cls(module.parameters(), **options)


def annealed(module: nn.Module) -> Any:
    optimizer = AdamW(module.parameters(), lr=0.01)
    schedule = {"scheduler": CosineAnnealingLR(optimizer, 20), "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def trained(
    monkeypatch: pytest.MonkeyPatch,
    recorder: Noted | EllipsisType | None,
    optimizing: Optimizing,
    sizes: Sequence[int] = ALIKE,
    rounds: int = 3,
    mu: float = 0.0,
    first: int = 1,
    **train: Any,
) -> tuple[list[Any], list[str]]:
    """Each round's clients' models and scores, each round from the same model; and what was said.

    With ``...`` steps are recorded by what records them on the device.
    """
    with monkeypatch.context() as patch:
        if recorder is not ...:
            name = "flsimulation.training.stacked.standing.recorder_on"
            patch.setattr(name, lambda _: recorder)
        numbers = range(first, rounds + 1)
        return _trained(Net(optimizing), sizes, numbers, mu, {"device": "cpu", **train})


def _trained(
    module: Any, sizes: Sequence[int], rounds: Sequence[int], mu: float, train: Any
) -> tuple[list[Any], list[str]]:
    spec = Train(batch_size=4, epochs=2, **train)
    trainer, found = StackedTrainer(module, spec, X, Y), []
    ends = np.cumsum(sizes)
    with collected() as said:
        for round in rounds:
            clients = [
                Batches(X, Y, rows, 4, functools.partial(np.random.default_rng, [round, place]))
                for place, rows in enumerate(np.split(np.arange(ends[-1]), ends[:-1]))
            ]
            seeds = [functools.partial(int, 10 * round + i) for i in range(len(sizes))]
            state = module.state_dict()
            for wave in trainer.fit(state, clients, seeds, proximal_mu=mu, round=round):
                for place in range(len(wave.clients)):
                    model = {n: v.clone() for n, v in wave.state(place).items()}
                    found.append((model, wave.results[place].scores))  # type: ignore[union-attr]
    return found, said.lines


def difference(one: list[Any], other: list[Any]) -> float:
    """The largest of all models' arrays and all scores."""
    assert len(one) == len(other)
    assert all(a[1].keys() == b[1].keys() for a, b in zip(one, other, strict=True))
    models = max(
        float((a[0][n].double() - b[0][n].double()).abs().max())
        for a, b in zip(one, other, strict=True)
        for n in a[0]
    )
    scores = max(abs(a[1][n] - b[1][n]) for a, b in zip(one, other, strict=True) for n in a[1])
    return max(models, scores)


@pytest.mark.parametrize(
    ("optimizing", "sizes", "more", "most"),
    [
        (of(SGD, lr=0.1), ALIKE, {}, 0),  # which a program takes itself
        (of(SGD, lr=0.1), UNEVEN, {}, 0),
        (of(SGD, lr=0.1, momentum=0.9, dampening=0.5), ALIKE, {}, 0),
        (of(Adam, lr=0.01), ALIKE, {"mu": 0.1, "gradient_clip": 0.5}, 0),
        (of(Adam, lr=0.01), UNEVEN, {}, 0),
        (annealed, ALIKE, {}, 1e-6),  # rates are rounded to float32
        (of(Adam, lr=0.01), ALIKE, {"learning_rate_decay": 0.5}, 1e-6),
    ],
)
def test_graphs_do_what_the_calls_do(
    monkeypatch: pytest.MonkeyPatch, optimizing: Optimizing, sizes: Any, more: Any, most: float
) -> None:
    plain, _ = trained(monkeypatch, None, optimizing, sizes, **more)
    recorder = Noted()
    ours, said = trained(monkeypatch, recorder, optimizing, sizes, **more)
    assert difference(ours, plain) <= most
    assert said == []
    assert 1 <= recorder.recorded <= 2
    assert recorder.replays > 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA_VISIBLE_DEVICES=0")
@pytest.mark.parametrize("optimizing", [of(SGD, lr=0.1), of(Adam, lr=0.01)])
def test_a_gpu_repeats_steps_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, optimizing: Optimizing
) -> None:
    plain, _ = trained(monkeypatch, None, optimizing, device="cuda")
    ours, said = trained(monkeypatch, ..., optimizing, device="cuda")
    assert (difference(ours, plain), said) == (0, [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA_VISIBLE_DEVICES=0")
def test_a_gpu_records_again_when_all_graphs_are_gone() -> None:
    recorder, x = CudaRecorder(torch.device("cuda")), torch.zeros(4, device="cuda")
    for number in (1, 2):
        recorder.record(lambda: x.add_(1))()
        assert x.tolist() == [number] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA_VISIBLE_DEVICES=0")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", [Rows, Attending])
def test_a_gpu_stacks_layers_that_it_has_single_kernels_for(kind: Any, dropout: float) -> None:
    module = kind(dropout)
    ours, theirs = (_trained(module, ALIKE, (1, 2), 0.0, {"device": d}) for d in ("cuda", "cpu"))
    assert (ours[1], len(ours[0])) == ([], 6)
    if not dropout:  # whose numbers are others on a GPU
        assert difference(ours[0], theirs[0]) < 1e-5


def test_recurrent_layers_are_stacked_where_they_look_for_their_weights_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As torch.nn.RNNBase.flatten_parameters does on a GPU, for cuDNN."""
    looked = list[int]()

    def flatten(layers: nn.RNNBase) -> None:
        looked.extend(weight.data_ptr() for weight in layers._flat_weights)

    plain, _ = _trained(Rows(0.3), ALIKE, (1,), 0.0, {"device": "cpu"})
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", flatten)
    TRACES.clear()
    ours, _ = _trained(module := Rows(0.3), ALIKE, (1,), 0.0, {"device": "cpu"})
    assert difference(ours, plain) == 0
    looked.clear()
    module.layers._init_flat_weights()
    assert looked  # of the user's module, as before


@pytest.mark.parametrize("optimizing", [annealed, of(Adam, lr=0.01)])
def test_steps_of_scaled_losses_have_the_rates_of_their_round_without_a_graph(
    monkeypatch: pytest.MonkeyPatch, optimizing: Optimizing
) -> None:
    more: Any = {"first": 2, "precision": "16-mixed", "learning_rate_decay": 0.5}
    plain, _ = trained(monkeypatch, None, optimizing, **more)
    ours, said = trained(monkeypatch, Noted(), optimizing, **more)
    assert difference(ours, plain) <= 1e-6  # rates are rounded to float32
    assert len(said) == 1
    assert "each client may leave out a step of its own" in said[0]


def broken() -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


def full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def wrong() -> Any:
    def once_more(calls: Any) -> None:
        calls.again()

    return once_more


def rmsprop(module: nn.Module) -> Any:
    optimizer = torch.optim.RMSprop(module.parameters(), lr=0.01)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize(
    ("fails", "optimizing", "more", "said"),
    [
        (broken, of(Adam, lr=0.01), {}, "cannot be made (RuntimeError: operation not permitted"),
        (full, of(SGD, lr=0.1), {}, "its memory does not hold a graph"),
        (wrong, of(Adam, lr=0.01), {}, "its first steps differ from those without a graph"),
        (None, rmsprop, {}, "RMSprop takes its steps with numbers of the CPU"),
        (None, of(Adam, lr=0.01), {"accumulate": 2}, "gradients of several batches are added up"),
        (None, annealed, {"precision": "64-true"}, "rates that change are exact in float32 only"),
    ],
)
def test_steps_without_a_graph_are_as_if_none_was_tried(
    monkeypatch: pytest.MonkeyPatch, fails: Any, optimizing: Optimizing, more: Any, said: str
) -> None:
    plain, _ = trained(monkeypatch, None, optimizing, **more)
    ours, lines = trained(monkeypatch, Noted(fails), optimizing, **more)
    assert difference(ours, plain) == 0
    (line,) = lines
    assert said in line


def test_a_graph_takes_no_more_than_a_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Noted(room=100)
    _, (line,) = trained(monkeypatch, recorder, of(SGD, lr=0.1))
    assert "more than half of the memory that is free" in line
    assert recorder.recorded == 0


def test_few_graphs_are_held_whatever_the_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flsimulation.training.stacked.standing.recorder_on", lambda _: recorder)
    recorder = Noted()
    trainer = StackedTrainer(module := Net(of(SGD, lr=0.1)), Train(device="cpu"), X, Y)
    for clients in (1, 2, 3, 4):
        for size in (2, 3, 5, 7):
            parts = np.arange(clients * 14 * size).reshape(clients, -1) % len(X)
            own = [Batches(X, Y, rows, size) for rows in parts]
            list(trainer.fit(module.state_dict(), own))
    assert recorder.recorded == 16
    assert recorder.alive == 6  # two forms of a wave, three sizes of a batch


def test_graphs_are_dropped_where_memory_is_too_small_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, _ = trained(monkeypatch, None, of(SGD, lr=0.1))

    def late() -> Any:
        def after(_: Any) -> None:
            if recorder.replays > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return after

    recorder = Noted(late)
    ours, (line,) = trained(monkeypatch, recorder, of(SGD, lr=0.1))
    assert difference(ours, plain) == 0
    assert "its memory does not hold them" in line
    assert recorder.alive == 0


class Convolving(pl.LightningModule):
    """A small network of images, with all that one program has to take apart for each client."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(nn.Conv1d(1, 4, 3, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3)),
            *(nn.Flatten(), nn.Linear(16, 3)),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.layers(batch[0][:, None]), batch[1])
        self.log("twice", 2 * loss)
        return loss

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


WORK = Work(100, 300, 100_000)


def engine_of(
    monkeypatch: pytest.MonkeyPatch, recorder: Noted | None, module: Any, **more: Any
) -> tuple[Any, list[str]]:
    """An engine for three clients, and what was said."""
    name = "flsimulation.training.stacked.standing.recorder_on"
    monkeypatch.setattr(name, lambda _: recorder)
    spec = Train(batch_size=4, epochs=2, device="cpu", **more.pop("train", {}))
    with collected() as said:
        found = engine_for(module, spec, X, Y, 3, work=WORK, **{"measures": True, **more})
    return found, said.lines


def fitted(engine: Any, module: Any) -> list[Any]:
    parts = np.arange(90).reshape(3, 30)
    jobs = [
        Job(place, Batches(X, Y, rows, 4), functools.partial(int, place), round=1)
        for place, rows in enumerate(parts)
    ]
    found = {}
    for fit in engine.fit(module.state_dict(), jobs, Terms()):
        found |= fit.results
    return [({n: v.clone() for n, v in own.state.items()}, own.scores) for own in found.values()]


FAST, SLOW = [0.3] * 3, [0.6] * 3


@pytest.mark.parametrize(
    ("durations", "seconds", "line"),
    [
        (
            SLOW + FAST,
            {"stacked": 0.1, "one-program": 0.2},
            "100 ms a client's step; one-program 200 ms",
        ),
        (FAST + SLOW, {"stacked": 0.1, "streams": 0.2}, "100 ms a client's step; streams 200 ms"),
        (
            FAST + [0.28] * 3,
            {"stacked": 0.1, "streams": 0.28 / 3},
            "100 ms a client's step; streams 93 ms",
        ),
    ],
)
def test_convolutions_of_clients_are_side_by_side_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, durations: list[float], seconds: Any, line: str
) -> None:
    module, recorder = Convolving(), Noted()
    recorder.durations = [*durations]
    own, said = engine_of(monkeypatch, recorder, module)
    assert (own.name, said) == ("stacked", [])
    assert own.step_seconds == pytest.approx(seconds)
    assert line in engine_line(own.name, own.why_not, own.step_seconds)
    apart = recorder.apart_calls
    found = fitted(own, module)
    assert not torch.backends.cudnn.deterministic
    assert recorder.replays > 10
    is_apart = "one-program" in seconds
    assert (recorder.apart_calls > apart) == is_apart
    plain = fitted(engine_of(monkeypatch, None, module, train={"engine": "stacked"})[0], module)
    assert difference(found, plain) <= (1e-5 if is_apart else 0)
    resumed, _ = engine_of(
        monkeypatch, Noted(), module, before=Before("stacked", step_seconds=own.step_seconds)
    )
    assert resumed.step_seconds == own.step_seconds
    assert difference(fitted(resumed, module), found) == 0


def test_one_program_is_repeated_where_steps_side_by_side_have_no_graph_after_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, count = Convolving(), itertools.count(1)
    recorder = Noted(lambda: broken() if next(count) == 3 else None)  # two are measured
    recorder.durations = SLOW + FAST
    own, _ = engine_of(monkeypatch, recorder, module)
    with collected() as said:
        found = fitted(own, module)
    (line,) = said.lines
    assert "not taken side by side on the GPU after all: a graph of the step cannot be made" in line
    assert recorder.replays > 10
    plain = fitted(engine_of(monkeypatch, None, module, train={"engine": "stacked"})[0], module)
    assert difference(found, plain) == 0


def test_an_engine_that_is_named_measures_no_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    own, said = engine_of(monkeypatch, Noted(), Convolving(), train={"engine": "stacked"})
    assert (own.step_seconds, said) == ({}, [])


def test_one_program_is_taken_where_a_way_has_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Convolving()
    own, (line,) = engine_of(monkeypatch, Noted(broken), module)
    assert not own.step_seconds.keys() & {"one-program", "streams"}
    assert "was not measured (RuntimeError: operation not permitted" in line
