"""Many clients as one program: equal to Lightning's Trainer client by client, or refused."""

from __future__ import annotations

import functools
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import TickingClock
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, StepLR

from flsimulation.errors import ClientError
from flsimulation.experiment.spec import Train
from flsimulation.models import CNN, MLP, Logistic, TwoNN
from flsimulation.training import Batches, State
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.stacked.compiler import torchscript as script_module
from flsimulation.training.stacked.compiler.comparison import exactly
from flsimulation.training.stacked.compiler.given import Given
from flsimulation.training.stacked.compiler.program import StepPrograms
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.room import Room
from flsimulation.training.stacked.trainer import StackedTrainer
from flsimulation.training.stacked.wave import Trained, Wave

pytestmark = pytest.mark.seconds

FEATURES, CLASSES, EXAMPLES = 6, 3, 64
X = torch.tensor(np.random.default_rng(0).normal(size=(EXAMPLES, FEATURES)))  # float64
X32 = X.float()
Y = torch.tensor(np.random.default_rng(1).integers(CLASSES, size=EXAMPLES))
UNEVEN = (17, 4, 9, 1)
"""Examples of the clients, unless a test says otherwise; batches of 4 leave 1, 0, 1 and 1."""

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


class Net(pl.LightningModule):
    """A smooth perceptron, so that no rounding flips a unit, with whatever optimizer is asked for.

    Parameters
    ----------
    optimizer : callable, optional
        Gives the optimizer of the module.
    """

    def __init__(self, optimizer: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.layer_1 = nn.Linear(FEATURES, 5)
        self.layer_2 = nn.Linear(5, CLASSES)
        self.optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer_2(torch.tanh(self.layer_1(x)))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.optimizer(self) if self.optimizer else SGD(self.parameters(), lr=0.3)


def of(cls: Callable[..., Any], **args: Any) -> Callable[[Any], Any]:
    """An optimizer over all parameters of a module."""
    return lambda module: cls(module.parameters(), **args)


def scheduled(scheduler: Callable[[Any], Any], **config: Any) -> Callable[[Any], Any]:
    """SGD with momentum, and a scheduler."""

    def configure(module: Any) -> Any:
        optimizer = SGD(module.parameters(), lr=0.3, momentum=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler(optimizer), **config},
        }

    return configure


def built(
    cls: Callable[..., Any], *args: Any, dtype: torch.dtype = torch.float32, **named: Any
) -> Any:
    """A module with seeded weights."""
    torch.manual_seed(0)
    return cls(*args, **named).to(dtype)


class Clients:
    """Clients whose parts follow each other in the data; each has a stream for every round."""

    def __init__(
        self, sizes: Sequence[int] = UNEVEN, batch: int = 4, x: Tensor = X32, y: Tensor = Y
    ) -> None:
        ends = np.cumsum(sizes)
        self.parts = [np.arange(end - size, end) % len(x) for end, size in zip(ends, sizes)]
        self.batch, self.x, self.y = batch, x, y

    def batches(self, round: int = 0) -> list[Batches]:
        return [
            Batches(
                self.x,
                self.y,
                part,
                self.batch,
                functools.partial(np.random.default_rng, [round, place]),
            )
            for place, part in enumerate(self.parts)
        ]


Result = tuple[Any, State]
"""Fit, Trained or ClientError, and the model."""


def alone(trainer: LocalTrainer, state: State, batches: list[Batches], **how: Any) -> list[Result]:
    found: list[Result] = []
    for place, own in enumerate(batches, 1):
        try:
            fit = trainer.fit(state, own, seed=place, **how)
            found.append((fit, fit.state))
        except ClientError as error:
            found.append((error, {}))
    return found


def together(
    trainer: StackedTrainer, state: State, batches: list[Batches], **how: Any
) -> list[Result]:
    found = dict[int, Result]()
    how.setdefault("seeds", [functools.partial(int, 1 + place) for place in range(len(batches))])
    for wave in trainer.fit(state, batches, **how):
        for place, client in enumerate(wave.clients):
            found[client] = wave.results[place], wave.state(place)
    assert sorted(found) == list(range(len(batches)))
    return [found[client] for client in range(len(batches))]


def apart(state: State, other: State) -> float:
    """Norm of the difference of all weights, by their norm."""
    assert list(state) == list(other)
    assert [v.dtype for v in state.values()] == [v.dtype for v in other.values()]
    assert [v.shape for v in state.values()] == [v.shape for v in other.values()]
    one, two = (torch.cat([v.double().flatten() for v in s.values()]) for s in (state, other))
    return float((one - two).norm() / two.norm())


def mean_of(results: list[Result], weights: Sequence[int]) -> State:
    """The next global model."""
    names = results[0][1]
    share = [weight / sum(weights) for weight in weights]
    return {
        name: sum(state[name] * part for (_, state), part in zip(results, share)).to(
            names[name].dtype
        )
        for name in names
    }


def assert_alike(one: Result, other: Result, tolerance: float) -> None:
    """A client's stacked and its own training: the same in every way."""
    if isinstance(other[0], ClientError):
        assert isinstance(one[0], ClientError)
        assert (one[0].reason, str(one[0])) == (other[0].reason, str(other[0]))
        return
    assert isinstance(one[0], Trained), one[0]
    assert apart(one[1], other[1]) <= tolerance
    assert one[0].steps == other[0].steps
    assert list(one[0].scores) == list(other[0].scores)
    assert one[0].scores == pytest.approx(other[0].scores, rel=max(1e-6, tolerance))


def assert_equal(
    module: pl.LightningModule,
    clients: Clients | None = None,
    tolerance: float = 1e-5,
    rounds: int = 1,
    mu: float = 0.0,
    **train: Any,
) -> StackedTrainer:
    """Stacked equals one by one; each takes its own chain of rounds."""
    clients = clients or Clients()
    spec = Train(**{"epochs": 2, "batch_size": clients.batch, **train})
    stacked, lightning = (
        StackedTrainer(module, spec, clients.x, clients.y),
        LocalTrainer(module, spec),
    )
    ours = theirs = {name: value.clone() for name, value in module.state_dict().items()}
    sizes = [len(part) for part in clients.parts]
    for round in range(rounds):
        one = together(stacked, ours, clients.batches(round), proximal_mu=mu)
        two = alone(lightning, theirs, clients.batches(round), proximal_mu=mu)
        for own, other in zip(one, two):
            assert_alike(own, other, tolerance)
        if rounds > 1:
            ours, theirs = mean_of(one, sizes), mean_of(two, sizes)
    return stacked


def refusal(module: pl.LightningModule, **train: Any) -> str:
    """Why the module is not stackable."""
    with pytest.raises(NotStackable) as caught:
        StackedTrainer(module, Train(**train), X32, Y)
    return str(caught.value)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, so that few clients are one wave, unless a test asks for others."""
    before, count = torch.get_num_threads(), getattr(request, "param", 1)
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)


TRACES: dict[Any, StepPrograms] = {}


@pytest.fixture
def one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that differ in their optimizer alone share a trace; it takes half a second."""

    def programs(
        module: pl.LightningModule, x: Tensor, y: Tensor, *form: Any, scaled: bool = False
    ) -> StepPrograms:
        key = str(module), x.dtype, scaled
        if key not in TRACES:
            TRACES[key] = StepPrograms(module, x, y, *form, scaled=scaled)
        return TRACES[key]

    monkeypatch.setattr("flsimulation.training.stacked.trainer.StepPrograms", programs)


# --- equality -------------------------------------------------------------------------------------

IMAGES = torch.tensor(np.random.default_rng(2).normal(size=(EXAMPLES, 1, 8, 8)))
MODELS: dict[str, Callable[..., Any]] = {
    "mlp": lambda **a: MLP(FEATURES, CLASSES, hidden=(7, 5), **a),
    "2nn": lambda **a: TwoNN(FEATURES, CLASSES, **a),
    "cnn": lambda **a: CNN(side=8, classes=CLASSES, width=2, hidden=6, **a),
    "logistic": lambda **a: Logistic(FEATURES, CLASSES, **a),
}


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("optimizer", "momentum", "rate"), [("sgd", 0.0, 0.1), ("sgd", 0.9, 0.02), ("adam", 0.0, 0.005)]
)
@pytest.mark.parametrize(
    ("dtype", "rounds", "tolerance"), [(torch.float32, 1, 1e-5), (torch.float64, 20, 1e-12)]
)
def test_shipped_models_equal_the_trainer(
    name: str,
    optimizer: str,
    momentum: float,
    rate: float,
    dtype: torch.dtype,
    rounds: int,
    tolerance: float,
) -> None:
    module = built(
        MODELS[name], learning_rate=rate, optimizer=optimizer, momentum=momentum, dtype=dtype
    )
    x = (IMAGES if name == "cnn" else X).to(dtype)
    clients = Clients(UNEVEN if rounds == 1 else (9, 4), batch=6, x=x)
    assert_equal(module, clients, tolerance, rounds, epochs=2 if rounds == 1 else 1)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": of(SGD, lr=0.3),
    "sgd-decay": of(SGD, lr=0.3, weight_decay=0.1),
    "sgd-maximize": of(SGD, lr=0.01, maximize=True),
    "sgd-tensor-rate": of(SGD, lr=torch.tensor(0.3)),
    "momentum": of(SGD, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "nesterov": of(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam": of(Adam, lr=0.02),
    "adam-decay": of(Adam, lr=0.02, weight_decay=0.1, amsgrad=True),
    "adam-foreach": of(Adam, lr=0.02, foreach=True),
    "adamw": of(AdamW, lr=0.02, weight_decay=0.3),
    "rmsprop": of(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "adagrad": of(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.1, lr_decay=0.1),
    "adadelta": of(torch.optim.Adadelta, lr=1.0),
    "adamax": of(torch.optim.Adamax, lr=0.02),
    "nadam": of(torch.optim.NAdam, lr=0.02),
    "radam": of(torch.optim.RAdam, lr=0.02),
    "step-by-epoch": scheduled(lambda o: StepLR(o, 2, 0.1)),
    "step-by-second-step": scheduled(lambda o: StepLR(o, 1, 0.5), interval="step", frequency=2),
    "step-by-second-epoch": scheduled(lambda o: StepLR(o, 1, 0.5), frequency=2),
    "cosine": scheduled(lambda o: CosineAnnealingLR(o, 3)),
    "exponential-by-step": scheduled(lambda o: ExponentialLR(o, 0.9), interval="step"),
    "one-cycle": scheduled(
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=20), interval="step"
    ),
}


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_and_schedulers_equal_the_trainer(name: str) -> None:
    assert_equal(built(Net, OPTIMIZERS[name]), epochs=3)


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize(
    ("name", "mu"),
    [
        *(("nesterov", 0.0), ("momentum", 0.5), ("adamw", 0.0), ("adagrad", 0.5)),
        *(("rmsprop", 0.0), ("exponential-by-step", 0.5)),
    ],
)
def test_twenty_rounds_in_double_precision_equal_the_trainer(name: str, mu: float) -> None:
    module = built(Net, OPTIMIZERS[name], dtype=torch.float64)
    assert_equal(module, Clients((9, 4, 1), x=X), 1e-12, rounds=20, mu=mu, epochs=1)


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize(("mu", "clip"), [(2.0, 0.0), (0.0, 0.05), (0.0, 0.6), (2.0, 0.05)])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_proximal_term_and_clipping_equal_the_trainer(
    mu: float, clip: float, name: str
) -> None:
    clients = Clients((17, 8, 9))
    assert_equal(built(Net, OPTIMIZERS[name]), clients, mu=mu, gradient_clip=clip, epochs=2)


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize(
    ("epochs", "batch"), [(1, 1), (2, 2), (5, 3), (4, 5), (3, 16), (2, 17), (1, 40)]
)
def test_every_remainder_and_number_of_epochs_equals_the_trainer(epochs: int, batch: int) -> None:
    assert_equal(built(Net, of(SGD, lr=0.1)), Clients(batch=batch), epochs=epochs)


class Deep(Net):
    """Any number of layers."""

    def __init__(self, widths: Sequence[int], optimizer: Callable[[Any], Any]) -> None:
        super().__init__(optimizer)
        del self.layer_1, self.layer_2
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.layers)[:-1]:
            x = functional.silu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shape_equals_the_trainer(data: st.DataObject) -> None:
    draw = data.draw
    widths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(sum(sizes), widths[0])), rng.integers(widths[-1], size=sum(sizes))
    clients = Clients(sizes, draw(st.integers(1, 7)), torch.tensor(x), torch.tensor(y))
    module = built(Deep, widths, OPTIMIZERS[draw(st.sampled_from(["sgd", "momentum", "adagrad"]))])
    assert_equal(
        module.double(),
        clients,
        1e-10,
        mu=draw(st.sampled_from([0.0, 0.3])),
        gradient_clip=draw(st.sampled_from([0.0, 0.2])),
        epochs=draw(st.integers(1, 3)),
    )


# --- what is logged -------------------------------------------------------------------------------


class Logging(Net):
    """Logs as the test asks."""

    def __init__(self, write: Callable[..., None]) -> None:
        super().__init__()
        self.write = write

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.write(self, loss, batch[0])
        return loss


def write_many(module: Any, value: Tensor, x: Tensor) -> None:
    module.log("sum", value, on_epoch=True, on_step=False, reduce_fx="sum")
    module.log("least", value, on_epoch=True, reduce_fx=min)
    module.log("most", value, on_epoch=True, reduce_fx=torch.max)
    module.log("average", value, on_epoch=True, reduce_fx="avg")
    module.log("own_size", value, on_epoch=True, batch_size=len(x))
    module.log("constant_size", value, on_epoch=True, batch_size=3)
    module.log_dict({"shape": value.reshape(1), "double": value.double()}, on_epoch=True)
    module.log_dict({"n": len(x), "two": torch.tensor(2), "true": True}, on_epoch=True)


WRITES: dict[str, Callable[..., None]] = {
    "default": lambda m, v, x: m.log("train_loss", v),
    "epoch": lambda m, v, x: m.log("train_loss", v, on_step=False, on_epoch=True),
    "both": lambda m, v, x: m.log("train_loss", v, on_step=True, on_epoch=True, prog_bar=True),
    "many": write_many,
    "two-losses": lambda m, v, x: (
        m.log("z_loss", 2 * v, on_step=False, on_epoch=True),
        m.log("a_loss", v, on_step=True, on_epoch=True),
        m.log("acc", (x[:, 0] > 0).float().mean(), logger=False),
    ),
}


@pytest.mark.filterwarnings("ignore:You called `self.log:UserWarning")
@pytest.mark.parametrize("name", WRITES)
def test_scores_equal_those_of_lightning(name: str) -> None:
    clients = Clients((17, 6, 4), batch=4)
    trainer = assert_equal(built(Logging, WRITES[name]), clients, epochs=2)
    results = together(trainer, built(Net).state_dict(), clients.batches())
    assert len(results[0][0].scores) > 1 or name in ("default", "epoch")


# --- modules --------------------------------------------------------------------------------------


class Scalar(Net):
    """Also trains a scalar, which has no axis but the clients'."""

    def __init__(self, optimizer: Callable[[Any], Any]) -> None:
        super().__init__(optimizer)
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.temperature


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
def test_a_scalar_parameter(name: str) -> None:
    clients = Clients((8, 3))
    module = built(Scalar, OPTIMIZERS[name])
    trainer = assert_equal(module, clients, gradient_clip=0.1, mu=0.1)
    (wave,) = trainer.fit(module.state_dict(), clients.batches(), average=True)
    assert wave.weights["temperature"].shape == ()


class Mixed(Net):
    """Weights and buffers of several types."""

    def __init__(self) -> None:
        super().__init__(of(SGD, lr=0.1, momentum=0.5, weight_decay=0.1))
        self.register_buffer("scale", torch.full((CLASSES,), 1.5, dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("hidden", torch.ones(CLASSES), persistent=False)
        self.fine = nn.Parameter(torch.full((CLASSES,), 0.1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) * self.scale + self.fine * self.steps) * self.hidden


class Half(Net):
    """A parameter in half precision."""

    def __init__(self) -> None:
        super().__init__(of(SGD, lr=0.125))
        self.coarse = nn.Parameter(torch.zeros(CLASSES, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.coarse.float()


def decayed_by_dimensions(module: Any) -> Any:
    matrices = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() <= 1]
    return AdamW(
        [{"params": matrices, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}],
        lr=0.02,
    )


def two_rates(module: Any) -> Any:
    return SGD(
        [
            {"params": module.layer_1.parameters(), "lr": 0.3},
            {"params": module.layer_2.parameters()},
        ],
        lr=0.01,
    )


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__(of(SGD, lr=0.3, weight_decay=0.1))
        self.layer_1.requires_grad_(False)


class Idle(Net):
    """Has parameters that the loss does not depend on; weight decay must not move them."""

    def __init__(self, optimizer: Callable[[Any], Any]) -> None:
        super().__init__(optimizer)
        self.idle, self.other = nn.Linear(3, 2), nn.Parameter(torch.ones(2))


class Tied(Net):
    """One matrix in and out, under two names."""

    def __init__(self, optimizer: Callable[[Any], Any] | None = None) -> None:
        super().__init__(optimizer)
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.second(torch.tanh(self.first(x))))


class InDictionary(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "x": batch[0]}


class WithoutNumber(Net):
    def training_step(self, batch: Any) -> Any:
        return functional.cross_entropy(self(batch[0]), batch[1]).reshape(1)


class InPlace(Net):
    """Overwrites what it has computed."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_1(x)
        x.mul_(2.0).add_(3.0)
        x[:, 0] = 1.0
        return self.layer_2(torch.relu_(x))


class Normed(Net):
    """Normalises each example."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.Sequential(
            nn.LayerNorm(5),
            nn.GroupNorm(1, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_2(functional.gelu(self.norms(self.layer_1(x))))


class LowRank(Net):
    """A product of two parameters: each one's gradient needs the other."""

    def __init__(self) -> None:
        super().__init__(of(SGD, lr=0.3))
        self.a, self.b = nn.Parameter(torch.randn(CLASSES, 2)), nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer_1(x)) @ (self.a @ self.b).T


class Chunked(Net):
    """Reads a parameter in pieces, at different times."""

    def __init__(self) -> None:
        super().__init__(of(SGD, lr=0.3))
        self.packed = nn.Parameter(torch.randn(2 * FEATURES, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.packed.chunk(2)
        rows = self.packed.unbind(0)
        return super().forward(torch.tanh(x @ one.T) @ two.T + rows[0] * rows[-1])


class SharedGradient(Net):
    """Two biases, which have one gradient."""

    def __init__(self, optimizer: Callable[[Any], Any]) -> None:
        super().__init__(optimizer)
        self.one, self.two = nn.Parameter(torch.zeros(CLASSES)), nn.Parameter(torch.ones(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (self.one + self.two)


class Strided(Net):
    """Parameters whose gradients come expanded or transposed."""

    def __init__(self, optimizer: Callable[[Any], Any]) -> None:
        super().__init__(optimizer)
        self.flat = nn.Parameter(torch.ones(4))
        self.turned = nn.Parameter(0.3 * torch.randn(2, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.tanh(x @ self.turned.T) @ self.turned[:, :CLASSES].square()
        return super().forward(x) * self.flat.sum() + turned

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        penalty = (self.turned.T * torch.arange(2)).sum()
        return super().training_step(batch, batch_idx) + 0.1 * penalty


class Product(Net):
    """Two parameters, of which each is the other's gradient."""

    def __init__(self) -> None:
        super().__init__(of(SGD, lr=0.1))
        self.one, self.two = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) + self.one @ self.two


class Penalised(Net):
    """Adds the norm of all of its parameters, and the variance over the batch's examples."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        penalty = sum(p.square().sum() for p in self.parameters())
        spread = self(batch[0]).detach().sum() / len(batch[0]) ** 2
        return super().training_step(batch, batch_idx) * len(batch[0]) + 0.01 * penalty + spread


class OwnMode(Net):
    """Parts that are in the mode of evaluation stay so, as Lightning leaves them."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5).eval()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.drop(x))


class Listed(Net):
    """Also keeps a parameter in a list, where no functional call finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.penalised = [self.layer_1.weight]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) + self.penalised[0].square().sum()


MODULES: dict[str, Callable[[], pl.LightningModule]] = {
    "mixed types": Mixed,
    "groups by dimensions": lambda: Net(decayed_by_dimensions),
    "groups with rates": lambda: Net(two_rates),
    "a parameter in no group": lambda: Net(lambda m: SGD(m.layer_2.parameters(), lr=0.3)),
    "frozen": Frozen,
    "idle": lambda: Idle(of(SGD, lr=0.3, weight_decay=0.5)),
    "idle, plain": lambda: Idle(of(SGD, lr=0.3)),
    "idle, Adam": lambda: Idle(of(AdamW, lr=0.01, weight_decay=0.5)),
    "tied": Tied,
    "tied, Adam": lambda: Tied(of(Adam, lr=0.01)),
    "a dictionary": InDictionary,
    "without batch_idx": WithoutNumber,
    "in place": InPlace,
    "normed": Normed,
    "low rank": LowRank,
    "chunked": Chunked,
    "one gradient twice": lambda: SharedGradient(of(SGD, lr=0.3)),
    "one gradient twice, momentum": lambda: SharedGradient(of(SGD, lr=0.3, momentum=0.5)),
    "strided": lambda: Strided(of(SGD, lr=0.01)),
    "strided, Adam": lambda: Strided(of(Adam, lr=0.01)),
    "strided, momentum": lambda: Strided(of(SGD, lr=0.01, momentum=0.5)),
    "product": Product,
    "penalised": Penalised,
    "own mode": OwnMode,
    "a list of one optimizer": lambda: Net(lambda m: [SGD(m.parameters(), lr=0.1)]),
    "a pair of lists": lambda: Net(
        lambda m: ([o := SGD(m.parameters(), lr=0.1)], [StepLR(o, 1, 0.1)])
    ),
    "a list and a scheduler": lambda: Net(
        lambda m: ([o := SGD(m.parameters(), lr=0.1)], StepLR(o, 1, 0.1))
    ),
}


CLIPPED = (
    *("mixed types", "a parameter in no group", "frozen", "idle, Adam", "tied", "product"),
    *("one gradient twice", "groups with rates"),
)


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize(
    ("kind", "mu", "clip"),
    [*((kind, 0.0, 0.0) for kind in MODULES), *((kind, 0.5, 0.1) for kind in CLIPPED)],
)
def test_modules_of_all_kinds_equal_the_trainer(kind: str, mu: float, clip: float) -> None:
    clients = Clients((17, 8, 9))  # which take some steps all together and some not
    assert_equal(built(MODULES[kind]), clients, mu=mu, gradient_clip=clip)


def test_half_precision() -> None:
    assert_equal(built(Half), tolerance=1e-3)


class Words(Net):
    """Integer inputs."""

    def __init__(self, padding: int | None = None) -> None:
        super().__init__(of(Adam, lr=0.02))
        self.table = nn.Embedding(11, FEATURES, padding_idx=padding)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.table(x).mean(1))


class Regression(Net):
    """Real targets of any shape."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return functional.mse_loss(self(x)[:, 0] if y.ndim == 1 else self(x), y)


WORDS = torch.tensor(np.random.default_rng(4).integers(11, size=(EXAMPLES, 5)))


def test_integer_inputs_and_real_targets() -> None:
    assert_equal(built(Words), Clients(x=WORDS))
    assert_equal(built(Words, 0), Clients(x=WORDS))  # whose padding vmap forgets for all but one
    assert_equal(built(Regression), Clients(y=X[:, 0].float()))
    assert_equal(built(Regression), Clients(y=X[:, :CLASSES].float()))


# --- clients among each other ---------------------------------------------------------------------


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("name", ["adam", "momentum", "sgd"])
def test_a_client_that_is_done_stays_as_it_is(name: str) -> None:
    module = built(Net, OPTIMIZERS[name])
    trainer = StackedTrainer(module, Train(batch_size=4), X32, Y)
    clients = Clients((1, 40))
    short, _ = together(trainer, module.state_dict(), clients.batches())
    assert short[0].steps == 1
    (only,) = together(trainer, module.state_dict(), clients.batches()[:1])
    assert apart(short[1], only[1]) <= 1e-7


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_company_and_threads_change_nothing_but_roundings(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flsimulation.training.stacked.room._WAVE_BYTES", 2_000)  # small waves
    module = built(Net, OPTIMIZERS["adam"])
    spec = Train(batch_size=4, epochs=2, device="cpu")
    trainer = StackedTrainer(module, spec, X32, Y)
    clients = Clients((5, 9, 2, 7, 9, 4, 11, 3))
    waves = list(trainer.fit(module.state_dict(), clients.batches()))
    assert len(waves) > 2
    assert torch.get_num_threads() == threads
    found = together(trainer, module.state_dict(), clients.batches())
    for place in range(len(clients.parts)):
        (only,) = together(trainer, module.state_dict(), clients.batches()[place : place + 1])
        assert apart(found[place][1], only[1]) <= 1e-6
        assert found[place][0].scores == pytest.approx(only[0].scores, rel=1e-6)


@pytest.mark.usefixtures("one_trace")
def test_the_global_model_is_not_changed() -> None:
    module = built(Net)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert_equal(module)
    assert apart(module.state_dict(), state) == 0


@pytest.mark.usefixtures("one_trace")
def test_no_clients_give_nothing() -> None:
    module = built(Net)
    trainer = StackedTrainer(module, Train(), X32, Y)
    assert list(trainer.fit(module.state_dict(), [])) == []


@pytest.mark.usefixtures("one_trace")
def test_the_mean_model_is_that_of_the_sound_clients_by_their_examples() -> None:
    module, x = built(Net), X32.clone()
    x[0] = torch.nan  # the first client's
    clients = Clients((5, 9, 2), x=x)
    trainer = StackedTrainer(module, Train(batch_size=4), x, Y)
    apiece = together(trainer, module.state_dict(), clients.batches())
    (wave,) = trainer.fit(module.state_dict(), clients.batches(), average=True)
    assert wave.own == frozenset()
    assert apart(wave.weights, mean_of(apiece[1:], (9, 2))) <= 1e-6
    assert dict(zip(wave.clients, wave.examples.tolist())) == {0: 5, 1: 9, 2: 2}
    failed = [client for client, r in zip(wave.clients, wave.results) if isinstance(r, ClientError)]
    assert failed == [0]


# --- clients that fail ----------------------------------------------------------------------------


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize(("name", "clip"), [("sgd", 0.0), ("adam", 0.0), ("momentum", 0.1)])
def test_a_client_that_diverges_harms_no_other(name: str, clip: float) -> None:
    x = X32.clone()
    x[UNEVEN[0]] = torch.nan  # the second client's
    trainer = assert_equal(built(Net, OPTIMIZERS[name]), Clients(x=x), gradient_clip=clip)
    results = together(trainer, built(Net).state_dict(), Clients(x=x).batches())
    assert [isinstance(result, ClientError) for result, _ in results] == [False, True, False, False]
    assert str(results[1][0]).startswith("its training loss is nan")


def test_weights_that_are_not_finite_are_named_as_the_trainer_names_them() -> None:
    module, clients = built(Steep), Clients((3, 4))
    assert_equal(module, clients, epochs=1)
    (result, _), _ = together(
        StackedTrainer(module, Train(batch_size=4), X32, Y),
        module.state_dict(),
        clients.batches(),
    )
    assert "its weights layer_1.weight are not finite" in str(result)


@pytest.mark.usefixtures("one_trace")
def test_all_clients_diverge() -> None:
    module, x = built(Net), torch.full_like(X, torch.nan).float()
    trainer = assert_equal(module, Clients(x=x))
    (wave,) = trainer.fit(module.state_dict(), Clients(x=x).batches(), average=True)
    assert [r.reason for r in wave.results if isinstance(r, ClientError)] == ["diverged"] * 4
    assert wave.weights == {}


class Steep(Net):
    """Its first step overflows, its first loss does not."""

    def __init__(self) -> None:
        super().__init__(of(SGD, lr=1e38))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return 1000 * super().training_step(batch, batch_idx)


class Overflowing(Net):
    """Its loss is infinite at first, its gradient is not."""

    def __init__(self) -> None:
        super().__init__(of(SGD, lr=0.5))
        self.far = nn.Parameter(torch.tensor([1e20]))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.far.square().sum()


def test_an_infinite_loss_of_an_epoch_before_the_last_is_no_failure() -> None:
    assert_equal(built(Overflowing), Clients((4, 4)), epochs=2)


@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero:UserWarning")
@pytest.mark.usefixtures("one_trace")
def test_a_client_without_examples_fails_as_it_does_alone() -> None:
    assert_equal(built(Net), Clients((4, 0, 3)))


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_clients_that_are_not_done_in_time(name: str) -> None:
    module = built(Net, OPTIMIZERS[name])
    trainer = StackedTrainer(module, Train(batch_size=4), X32, Y, TickingClock())
    clients = Clients((20, 4, 8))
    results = together(trainer, module.state_dict(), clients.batches(), expires=1.5)
    assert [r.reason if isinstance(r, ClientError) else "" for r, _ in results] == [
        "deadline", "", "",
    ]  # fmt: skip
    late = results[0][0]
    assert str(late).startswith("it was not done before the round's deadline")
    whole = together(trainer, module.state_dict(), clients.batches())
    for place in (1, 2):
        assert apart(results[place][1], whole[place][1]) <= 1e-6
    past = together(trainer, module.state_dict(), clients.batches(), expires=-1.0)
    assert all(isinstance(r, ClientError) and r.reason == "deadline" for r, _ in past)


# --- what is refused ------------------------------------------------------------------------------


class Doing(Net):
    """Does something in its step, with the layer and the dictionary it keeps for that."""

    def __init__(
        self, act: Callable[..., Any], layer: nn.Module | None = None, **kept: Any
    ) -> None:
        super().__init__()
        self.act, self.layer, self.kept = act, layer, kept
        self.counter, self.seen = 0, list[int]()
        self.register_buffer("buffer", torch.zeros(()))
        self.loose = torch.ones(())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        found = self.act(self, batch[0], batch_idx)
        return super().training_step(batch, batch_idx) + (found if found is not None else 0.0)


def count(module: Any, x: Tensor, number: int) -> None:
    module.counter += 1


def clamp_parameter(module: Any, x: Tensor, number: int) -> None:
    with torch.no_grad():
        module.layer_1.weight.clamp_(-0.1, 0.1)


def add_to_loose(module: Any, x: Tensor, number: int) -> Any:
    module.loose.mul_(0.5)
    return module.loose * x.sum()


def count_in_dictionary(module: Any, x: Tensor, number: int) -> Any:
    module.kept["n"] = module.kept.get("n", 0) + 1
    return x.sum() / module.kept["n"]


def by_value(module: Any, x: Tensor, number: int) -> Any:
    return x.sum() if x.sum() > 0 else None


RNG = np.random.default_rng(5)
REFUSED: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "trainer": (lambda m, x, i: m.trainer.callbacks, {}, "training_step uses self.trainer"),
    "optimizers": (lambda m, x, i: m.optimizers(), {}, "training_step uses self.optimizers"),
    "number": (lambda m, x, i: 0.0 if i == 0 else 1.0, {}, "training_step uses batch_idx"),
    "drawn by values": (
        lambda m, x, i: torch.multinomial(x.abs(), 1).sum(), {},
        "training_step draws random numbers that depend on others .aten.multinomial",
    ),
    "own generator": (
        lambda m, x, i: torch.rand(3, generator=m.kept["g"]).sum(), {"g": torch.Generator()},
        "training_step draws from a random generator of its own",
    ),
    "python": (lambda m, x, i: random.random(), {}, "draws random numbers by Python's or NumPy's"),
    "numpy": (lambda m, x, i: np.random.rand(), {}, "draws random numbers by Python's or NumPy's"),
    "own stream": (
        lambda m, x, i: m.kept["rng"].random(), {"rng": RNG}, "changes the module itself",
    ),
    "own iterator": (
        lambda m, x, i: x.sum() * next(m.kept["i"]), {"i": iter(range(99))},
        "changes the module itself",
    ),
    "counter": (count, {}, "changes the module itself"),
    "list": (lambda m, x, i: m.seen.append(1), {}, "changes the module itself"),
    "dictionary": (count_in_dictionary, {}, "changes the module itself"),
    "parameter": (clamp_parameter, {}, "training_step changes the parameter layer_1.weight"),
    "loose tensor": (add_to_loose, {}, "changes"),
    "value": (by_value, {}, "training_step depends on a tensor's value"),
    "item": (lambda m, x, i: x.sum().item(), {}, "training_step depends on a tensor's value"),
    "mask": (lambda m, x, i: x[x > 0].sum(), {}, "training_step cannot be traced"),
    "raises": (lambda m, x, i: [][1], {}, "training_step fails for a batch of 11 .IndexError"),
    "metric": (
        lambda m, x, i: m.log("m", m.layer), {"layer": torchmetrics.MeanMetric()},
        "training_step logs 'm', a metric object",
    ),
    "vector": (lambda m, x, i: m.log("v", x[0]), {}, "training_step logs 'v', which is no number"),
    "twice": (
        lambda m, x, i: (m.log("v", 1.0), m.log("v", 2.0))[0], {}, "logs 'v' twice in a step",
    ),
    "other names": (
        lambda m, x, i: m.log(f"n{len(x)}", 1.0), {}, "logs something else for other sizes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_steps_that_mean_something_else_stacked_are_refused(kind: str) -> None:
    act, kept, reason = REFUSED[kind]
    python = random.getstate()
    with pytest.raises(NotStackable, match=reason):
        StackedTrainer(built(Doing, act, **kept), Train(), X32, Y)
    assert random.getstate() == python


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Hooked(Net):
    def on_train_epoch_end(self) -> None:
        self.epochs = 1


class Stepping(Net):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        pass


class Keeping(Net):
    """Gives the same optimizer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = SGD(self.parameters(), lr=0.1)

    def configure_optimizers(self) -> Any:
        return self.kept


def with_plateau(module: Any) -> Any:
    optimizer = SGD(module.parameters(), lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"},
    }


def hooked_optimizer(module: Any) -> Any:
    optimizer = SGD(module.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


REFUSED_MODULES: dict[str, tuple[Callable[[], pl.LightningModule], str]] = {
    "manual": (Manual, "the module optimizes by itself"),
    "hook": (Hooked, "the module has a on_train_epoch_end of its own"),
    "optimizer_step": (Stepping, "the module has a optimizer_step of its own"),
    "same": (Keeping, "configure_optimizers returns the same optimizer each time"),
    "lbfgs": (lambda: Net(of(torch.optim.LBFGS)), "LBFGS does not work element by element"),
    "two": (
        lambda: Net(lambda m: [SGD(part.parameters(), lr=0.1) for part in (m.layer_1, m.layer_2)]),
        "the module has several optimizers or none",
    ),
    "none": (lambda: Net(lambda m: []), "the module has several optimizers or none"),
    "plateau": (lambda: Net(with_plateau), "its scheduler goes by a metric"),
    "hooked optimizer": (lambda: Net(hooked_optimizer), "the optimizer has hooks"),
    "trainer": (
        lambda: Net(lambda m: SGD(m.parameters(), lr=len(m.trainer.callbacks))),
        "configure_optimizers needs a Trainer",
    ),
    "list of weights": (Listed, "training_step does something else for many clients at once"),
}


@pytest.mark.parametrize("kind", REFUSED_MODULES)
def test_modules_that_mean_something_else_stacked_are_refused(kind: str) -> None:
    make, reason = REFUSED_MODULES[kind]
    assert refusal(built(make)).startswith(reason)


ELSEWHERE = list[str]()
"""Where another thread has drawn from Python's random numbers; a module's copies share it."""


def another_thread_draws(place: str) -> None:
    """Draw from Python's global stream as Flower's heartbeats do, the first time in each place."""
    if place not in ELSEWHERE:
        ELSEWHERE.append(place)
        thread = threading.Thread(target=random.random)
        thread.start()
        thread.join()


class Beside(Net):
    """Draws nothing; but another thread does while its methods run."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        another_thread_draws("step")
        return super().training_step(batch, batch_idx)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        another_thread_draws("hook")

    def configure_optimizers(self) -> Any:
        another_thread_draws("optimizer")
        return super().configure_optimizers()


def test_random_numbers_that_another_thread_draws_do_not_count() -> None:
    ELSEWHERE.clear()
    assert_equal(built(Beside))
    assert sorted(ELSEWHERE) == ["hook", "optimizer", "step"]


def test_validation_between_epochs_is_refused() -> None:
    assert refusal(built(Net), validate=True).startswith("train.validate evaluates between")


# --- steps that go by the size of a batch ---------------------------------------------------------


class Sizing(Net):
    """Does something else for large batches, and takes differences between neighbours."""

    def __init__(self, most: int, act: Callable[..., Any]) -> None:
        super().__init__(of(SGD, lr=0.1))
        self.most, self.act = most, act

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return self.act(self, loss) if len(batch[0]) > self.most else loss


@pytest.mark.parametrize("most", [1, 10, 12, 18])
def test_a_step_that_goes_by_the_size_is_right_or_refused(most: int) -> None:
    module = built(Sizing, most, lambda m, loss: 3 * loss)
    clients = Clients((40, 7), batch=20)
    if most == 12:  # between the sizes for which it is traced
        with pytest.raises(NotStackable, match="something else for other sizes of a batch"):
            StackedTrainer(module, Train(), X32, Y)
    else:
        assert_equal(module, clients)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (
            lambda m, loss: (m.log("large", loss), loss)[1],
            "logs something else for other sizes of a batch",
        ),
        (
            lambda m, loss: loss * torch.multinomial(loss.abs()[None], 1),
            "draws random numbers that depend on others",
        ),
        (lambda m, loss: 1 / 0, "fails for a batch of 20 .ZeroDivisionError"),
    ],
)
def test_a_size_for_which_a_step_is_no_program_is_found_before_training(
    act: Callable[..., Any], reason: str
) -> None:
    with pytest.raises(NotStackable, match=reason):
        StackedTrainer(built(Sizing, 18, act), Train(batch_size=20), X32, Y)


class Neighbours(Net):
    """Uses one less than the size of the batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = self(batch[0])
        spread = x.var(0).sum() + (x[1:] - x[:-1]).square().mean()
        return super().training_step(batch, batch_idx) + 0.1 * spread


def test_sizes_that_are_no_multiples_are_right_or_refused() -> None:
    module = built(Neighbours)
    try:
        StackedTrainer(module, Train(batch_size=4), X32, Y)
    except NotStackable as reason:
        assert "something else for other sizes" in str(reason)  # noqa: PT017
    else:
        assert_equal(module, Clients((8, 12)))


# --- how programs run -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_programs_of_shipped_models_are_torchscript(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = list[torch.fx.GraphModule]()
    compile = script_module.compiled

    def compiled(module: torch.fx.GraphModule) -> Callable[..., Any]:
        run = compile(module)
        assert run is not module, "it runs as Python"
        modules.append(module)
        return run

    monkeypatch.setattr("flsimulation.training.stacked.compiler.program.compiled", compiled)
    x = (IMAGES if name == "cnn" else X).float()
    programs = StepPrograms(built(MODELS[name], learning_rate=0.1), x[:32], Y[:32])
    plain = (0.1,) * len(programs.names.trained)
    assert programs.can_descend(plain)
    for rates in (None, plain):
        run: Any = programs.program(2, 4, rates)
        assert run.func.__name__ == "_run", "it runs by autograd"
    assert len(modules) == 2


def test_plain_sgd_takes_its_steps_in_place_as_torch_does() -> None:
    module = built(MLP, FEATURES, CLASSES, hidden=(7, 5), learning_rate=0.1, optimizer="sgd")
    programs = StepPrograms(module, X32, Y)
    trained = [torch.stack([p.detach(), p.detach() * 1.1]) for p in module.parameters()]
    rates = (0.1, 0.2, 0.1, 0.1, 0.3, 0.1)
    x, y = X32[:8].view(2, 4, -1), Y[:8].view(2, 4)
    expected = []
    for place in range(2):
        own = [nn.Parameter(leaf[place].clone()) for leaf in trained]
        named = dict(zip(programs.names.trained, own))
        loss = functional.cross_entropy(
            torch.func.functional_call(module, named, x[place]), y[place]
        )
        optimizer = SGD([{"params": [p], "lr": rate} for p, rate in zip(own, rates)], lr=1.0)
        loss.backward()
        optimizer.step()
        expected.append(own)
    with torch.no_grad():
        step = programs.program(2, 4, rates)(Given(trained, [], [], x, y))
    assert step.gradients == [None] * 6
    for leaf, one, two in zip(trained, *expected):
        torch.testing.assert_close(leaf, torch.stack([one, two]).detach())


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("cls", [LowRank, Chunked, Product])
def test_steps_in_place_come_after_all_that_read_the_parameter(cls: type[Net]) -> None:
    programs = StepPrograms(built(cls), X32[:32], Y[:32])
    rates = (0.3,) * len(programs.names.trained)
    assert programs.can_descend(rates)
    run: Any = programs.program(2, 4, rates)
    assert run.func.__name__ == "_run", "it is not the step, by a comparison with autograd"


@pytest.mark.parametrize(
    ("module", "mu", "clip", "in_place"),
    [
        (Net(), 0.0, 0.0, True),
        (Net(two_rates), 0.0, 0.0, True),
        (Idle(of(SGD, lr=0.3)), 0.0, 0.0, True),
        (Net(), 0.1, 0.0, False),
        (Net(), 0.0, 1.0, False),
        (Net(OPTIMIZERS["sgd-decay"]), 0.0, 0.0, False),
        (Net(OPTIMIZERS["momentum"]), 0.0, 0.0, False),
        (Net(OPTIMIZERS["adam"]), 0.0, 0.0, False),
        (Net(OPTIMIZERS["cosine"]), 0.0, 0.0, False),
    ],
)
def test_only_plain_sgd_goes_without_an_optimizer(
    module: Net, mu: float, clip: float, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Any]()
    program = StepPrograms.program

    def noted(self: StepPrograms, *sizes: Any) -> Any:
        asked.append(sizes[2])
        return program(self, *sizes)

    monkeypatch.setattr(StepPrograms, "program", noted)
    trainer = StackedTrainer(module, Train(gradient_clip=clip), X32, Y)
    list(trainer.fit(module.state_dict(), Clients().batches(), proximal_mu=mu))
    assert asked
    assert all((rates is not None) == in_place for rates in asked)


@pytest.mark.usefixtures("one_trace")
def test_each_wave_says_whose_it_is() -> None:
    module = built(Frozen)
    trainer = StackedTrainer(module, Train(batch_size=4), X32, Y)
    (wave,) = trainer.fit(module.state_dict(), Clients().batches())
    assert isinstance(wave, Wave)
    assert wave.own == {"layer_2.weight", "layer_2.bias"}
    assert wave.weights["layer_1.weight"].shape == module.layer_1.weight.shape


def test_a_comparison_uses_neither_tf32_nor_cudnn_and_leaves_the_settings() -> None:
    kinds: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    assert before[0] == "tf32"  # PyTorch's
    with exactly():
        assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
        assert not torch.backends.cudnn.enabled
    assert [kind.fp32_precision for kind in kinds] == before
    assert torch.backends.cudnn.enabled


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize(
    ("optimizer", "step_bytes", "clients"),
    [("sgd", 0, 10), ("adam", 0, 2), ("sgd", 1 << 10, 1), ("sgd", 1 << 30, 1)],
)
def test_a_wave_fits_its_room_with_what_a_step_takes(
    optimizer: str, step_bytes: int, clients: int
) -> None:
    module = built(Net, OPTIMIZERS[optimizer])
    trainer = StackedTrainer(module, Train(batch_size=4, device="cpu"), X32, Y)
    size = sum(4 * p.numel() for p in module.parameters())  # 212 bytes; Adam's moments beside them
    trainer._room = Room(10 * size, 0, step_bytes)
    waves = list(trainer.fit(module.state_dict(), Clients([4] * 20).batches()))
    assert {len(wave.clients) for wave in waves} == {clients}


# --- steps that are a little wrong ----------------------------------------------------------------

WRONG = 5e-4
TYPES = [torch.float32, torch.float64]


def trainer(module: pl.LightningModule, dtype: torch.dtype) -> StackedTrainer:
    return StackedTrainer(module, Train(batch_size=4), X.to(dtype), Y)


def is_stacked(tensor: Tensor) -> bool:
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def steeper(value: Tensor, share: float) -> Tensor:
    """The value, with a gradient that is larger by a share."""
    return value + share * (value - value.detach())


class _Wrong(torch.autograd.Function):
    """The identity, with a gradient that is wrong."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 + WRONG)


class _WrongForMany(_Wrong):
    """The identity, whose rule for vmap has a gradient that is wrong."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        return _Wrong.apply(x), in_dims[0]


class OwnFunction(Net):
    """Uses an autograd function of its own."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = _WrongForMany.apply(super().forward(x))
        return logits


class Steeper(Net):
    """Its loss has a gradient that is wrong where it is one of many."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return steeper(loss, WRONG) if is_stacked(batch[0]) else loss


class SteeperInOne(Net):
    """One of its gradients is wrong, and small beside the others."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.small, self.share = nn.Parameter(torch.ones(3)), share

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        small = self.share * self.small.square().sum()
        if is_stacked(batch[0]):
            small = steeper(small, WRONG)
        return super().training_step(batch, batch_idx) + small


class SteeperForOneClient(Net):
    """Its gradient is wrong for clients with large weights."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        wrong = steeper(loss, WRONG) if is_stacked(batch[0]) else loss
        return torch.where(self.one.detach() > 1.015, wrong, loss) + 0 * self.one

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))  # 1.01 and 1.02 where clients are compared


WRONGS: dict[str, Callable[[], Net]] = {
    "a function of its own": OwnFunction,
    "its loss": Steeper,
    "a gradient that is small": lambda: SteeperInOne(0.01),
    "one client": SteeperForOneClient,
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", WRONGS)
def test_gradients_that_are_a_little_wrong_for_many_are_refused(
    kind: str, dtype: torch.dtype
) -> None:
    with pytest.raises(NotStackable, match="something else for many clients at once"):
        trainer(built(WRONGS[kind], dtype=dtype), dtype)


def test_in_double_precision_no_gradient_is_too_small_to_be_seen() -> None:
    with pytest.raises(NotStackable, match="something else for many clients at once"):
        trainer(built(SteeperInOne, 1e-8, dtype=torch.float64), torch.float64)


class SteeperWhenLong(Net):
    """Its gradient is another for long batches, which no trace has seen; its loss is not."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return steeper(loss, WRONG) if len(batch[0]) > 20 else loss


@pytest.mark.parametrize("rate", [0.3, 1e-3])
@pytest.mark.parametrize(
    "momentum", [0.0, 0.5]
)  # with it the program does not take the steps itself
def test_a_size_whose_gradients_are_a_little_different_has_them(
    rate: float, momentum: float
) -> None:
    module = built(
        SteeperWhenLong,
        lambda m: SGD(m.parameters(), lr=rate, momentum=momentum),
        dtype=torch.float64,
    )
    assert_equal(module, Clients((48, 24, 30), batch=24, x=X), 1e-12)


class Edge(Net):
    """Has a unit whose input is a rounding away from 0 for weights that are 1.01 times its own."""

    def __init__(self, rounding: Callable[[torch.dtype], float]) -> None:
        super().__init__()
        self.one, self.rounding = nn.Parameter(torch.ones(1)), rounding

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        error = self.rounding(self.one.dtype) * (1 if is_stacked(batch[0]) else -1)
        unit = torch.relu(self.one - 1.01 + 1e-8 + error).sum()
        return super().training_step(batch, batch_idx) + unit


def test_a_unit_that_a_rounding_turns_on_is_no_other_step() -> None:
    assert_equal(built(Edge, lambda dtype: torch.finfo(dtype).eps), Clients((17, 8, 9)))


def test_a_unit_that_more_than_a_rounding_turns_on_is_another_step() -> None:
    with pytest.raises(NotStackable, match="something else for many clients at once"):
        trainer(built(Edge, lambda _: 1e-7), torch.float32)


class Fine(Net):
    """Its last layer is in double precision: its gradient has float32's errors all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fine(super().forward(x).double())
        return logits


class Cancelled(Net):
    """A bias that is taken away again with the mean: its gradient is nothing but roundings."""

    def forward(self, x: Tensor) -> Tensor:
        inner = self.layer_1(x)
        logits: Tensor = self.layer_2(torch.tanh(inner - inner.mean(0)))
        return logits


class Kinked(Net):
    """Has units whose input is a rounding away from 0 in half precision, as some of many are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_1, self.layer_2 = nn.Linear(FEATURES, 200), nn.Linear(200, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer_2(torch.relu(self.layer_1(x)))
        return logits


class Autocast(Net):
    """Multiplies in bfloat16, whatever the types of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = super().forward(x)
        return logits.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", [Net, Fine, Cancelled, Autocast, Kinked])
def test_roundings_are_no_other_step(kind: type[Net], dtype: torch.dtype) -> None:
    module = built(kind, dtype=dtype)
    if kind is Fine:
        module.fine.double()
    trainer(module, dtype)


class Wide(Net):
    """Sums over very many inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_1 = nn.Linear(20_000, 5)


def test_a_sum_over_very_many_terms_is_the_same_step() -> None:
    module = built(Wide)
    StackedTrainer(module, Train(batch_size=64), torch.randn(EXAMPLES, 20_000), Y)
