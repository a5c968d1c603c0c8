"""Layers that vmap has no form for, of many clients: as Lightning trains them, or refused with a reason."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tests.test_cohort import Clients, assert_equal, one_trace, threads  # noqa: F401
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.nn.utils import parametrizations, rnn

from flsimulation.experiment.spec import Train
from flsimulation.training.form import PAIR
from flsimulation.training.stacked.compiler import recurrent as module_of_layers
from flsimulation.training.stacked.compiler.calls import calls_of
from flsimulation.training.stacked.compiler.comparison import exactly
from flsimulation.training.stacked.compiler.program import StepPrograms
from flsimulation.training.stacked.compiler.recurrent import states_of
from flsimulation.training.stacked.compiler.rewritten import Rewritten, without_fallback
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.trainer import StackedTrainer

pytestmark = pytest.mark.seconds
DTYPES = [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)]

LENGTH, WIDTH, UNITS, CLASSES, EXAMPLES = 4, 6, 5, 3, 48
RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(EXAMPLES, LENGTH, WIDTH)))  # float64
Y = torch.tensor(RNG.integers(CLASSES, size=EXAMPLES))
TOKENS = torch.tensor(RNG.integers(7, size=(EXAMPLES, LENGTH)))
UNEVEN = (17, 4, 9, 1)

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


class Reader(pl.LightningModule):
    """A classifier of sequences: any way to read one, and a linear layer."""

    def __init__(self, read: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.read, self.optimizer = read, "sgd"
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.LazyLinear(CLASSES)

    def loss(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self.head(self.read(self, batch[0])), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.optimizer](self.parameters())


def made(
    make: Callable[[], Reader], dtype: torch.dtype, optimizer: str = "sgd", x: Tensor = X
) -> tuple[Reader, Tensor]:
    """A module with seeded weights, and its inputs."""
    torch.manual_seed(0)
    module = make().to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    module.loss((x[:2], Y[:2]))  # whose first call makes the last layer
    module.optimizer = optimizer
    return module, x


def check(
    make: Callable[[], Reader],
    dtype: torch.dtype = torch.float64,
    optimizer: str = "sgd",
    x: Tensor = X,
    **how: Any,
) -> StackedTrainer:
    """Clients of uneven sizes train as they do alone."""
    module, x = made(make, dtype, optimizer, x)
    clients = Clients(how.pop("sizes", UNEVEN), how.pop("batch", 4), x, Y)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    return assert_equal(module, clients, tolerance, **how)


# --- recurrent layers -----------------------------------------------------------------------------


def last(module: Any, x: Tensor) -> Tensor:
    return module.layer(x)[0][:, -1]


def every(module: Any, x: Tensor) -> Tensor:
    states: Tensor = module.layer(x)[0]
    return (states * torch.arange(1, LENGTH + 1, dtype=x.dtype)[:, None]).mean(1)


def ends(module: Any, x: Tensor) -> Tensor:
    """The last states of all layers and ways, of an LSTM with its cells, time first."""
    _, found = module.layer(x.transpose(0, 1))
    both = (found,) if isinstance(found, Tensor) else found
    return torch.cat([end.transpose(0, 1).flatten(1) for end in both], 1)


def begun(module: Any, x: Tensor) -> Tensor:
    """Initial states that depend on weights, for each example its own."""
    first = torch.tanh(module.first(x[:, 0])).unsqueeze(0)
    given = (first, 2 * first) if isinstance(module.layer, nn.LSTM) else first
    return module.layer(x, given)[0].mean(1)


def packed(module: Any, x: Tensor) -> Tensor:
    given = rnn.pack_padded_sequence(x, [LENGTH - 1] * len(x), batch_first=True)
    found, _ = module.layer(given)
    whole, lengths = rnn.pad_packed_sequence(found, batch_first=True, total_length=LENGTH)
    return whole.mean(1) * lengths[:, None]


def cell(kind: type[nn.RNNBase], **named: Any) -> nn.RNNBase:
    return kind(WIDTH, UNITS, **{"batch_first": True, **named})


GRU, LSTM, RNN = nn.GRU, nn.LSTM, nn.RNN
RECURRENT: dict[str, Callable[[], Reader]] = {
    "gru": lambda: Reader(last, layer=cell(GRU)),
    "lstm": lambda: Reader(last, layer=cell(LSTM)),
    "tanh": lambda: Reader(last, layer=cell(RNN)),
    "relu": lambda: Reader(every, layer=cell(RNN, nonlinearity="relu")),
    "gru without bias": lambda: Reader(every, layer=cell(GRU, bias=False)),
    "lstm without bias": lambda: Reader(every, layer=cell(LSTM, bias=False)),
    "rnn without bias": lambda: Reader(every, layer=cell(RNN, bias=False)),
    "three layers": lambda: Reader(every, layer=cell(GRU, num_layers=3)),
    "both ways": lambda: Reader(ends, layer=cell(GRU, bidirectional=True, batch_first=False)),
    "two lstm both ways": lambda: Reader(
        ends, layer=cell(LSTM, num_layers=2, bidirectional=True, batch_first=False)
    ),
    "own start": lambda: Reader(begun, layer=cell(GRU), first=nn.Linear(WIDTH, UNITS)),
    "own start of lstm": lambda: Reader(begun, layer=cell(LSTM), first=nn.Linear(WIDTH, UNITS)),
    "own start of rnn": lambda: Reader(begun, layer=cell(RNN), first=nn.Linear(WIDTH, UNITS)),
    "before a layer": lambda: Reader(
        lambda m, x: m.layer(m.linear(x))[0].mean(1),
        layer=cell(LSTM),
        linear=nn.Linear(WIDTH, WIDTH),
    ),
    "dropout of 0": lambda: Reader(last, layer=cell(GRU, num_layers=2, dropout=0.0)),
    "packed": lambda: Reader(packed, layer=cell(LSTM)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_equal_the_trainer(kind: str, dtype: torch.dtype) -> None:
    check(RECURRENT[kind], dtype)


@pytest.mark.slow
@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("kind", ["gru", "lstm", "tanh"])
@pytest.mark.parametrize(
    ("optimizer", "mu", "clip"),
    [("sgd", 0.5, 0.0), ("momentum", 0.0, 0.0), ("adam", 0.0, 0.1), ("adam", 0.5, 0.0)],
)
def test_recurrent_layers_with_any_optimizer(
    kind: str, optimizer: str, mu: float, clip: float
) -> None:
    check(RECURRENT[kind], optimizer=optimizer, mu=mu, gradient_clip=clip, epochs=3)
    check(RECURRENT[kind], torch.float32, optimizer, mu=mu, gradient_clip=clip, epochs=1)


@pytest.mark.slow
@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize(("epochs", "batch"), [(1, 1), (3, 5), (2, 17), (1, 40)])
def test_recurrent_layers_with_every_remainder(epochs: int, batch: int) -> None:
    check(RECURRENT["gru"], epochs=epochs, batch=batch)


@pytest.mark.slow
def test_rounds_of_recurrent_layers_stay_equal() -> None:
    check(RECURRENT["two lstm both ways"], rounds=5, epochs=1)


@pytest.mark.parametrize("near", [0, 1, 10**9])
def test_clients_go_through_time_in_parts_or_all_together(
    near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_layers, "_NEAR", near)
    check(RECURRENT["gru without bias"])


KINDS = {"tanh": (RNN, 1), "gru": (GRU, 1), "lstm": (LSTM, 2)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_gradient_of_a_layer_is_that_of_autograd(kind: str, dtype: torch.dtype) -> None:
    cls, count = KINDS[kind]
    clients, tolerance = 3, 1e-12 if dtype == torch.float64 else 1e-5
    layers = [cls(WIDTH, UNITS).to(dtype) for _ in range(clients)]
    x = torch.randn(clients, LENGTH, 2, WIDTH, dtype=dtype, requires_grad=True)
    start = [torch.randn(clients, 2, UNITS, dtype=dtype, requires_grad=True) for _ in range(count)]
    weights = [
        torch.stack(own).detach().requires_grad_()
        for own in zip(*(layer._flat_weights for layer in layers))
    ]
    ours = vmap(lambda *given: states_of(kind, given[0], given[1], given[2]))(x, start, weights)
    seeds = [torch.randn_like(value) for value in ours]
    found = torch.autograd.grad(ours, [x, *start, *weights], seeds)
    for place, layer in enumerate(layers):
        first = [state[place][None].detach().requires_grad_() for state in start]
        own = x[place].detach().requires_grad_()
        states, end = layer(own, first[0] if count == 1 else tuple(first))
        theirs = [states] if count == 1 else [states, end[1][0]]
        wanted = torch.autograd.grad(
            theirs, [own, *first, *layer._flat_weights], [seed[place] for seed in seeds]
        )
        for one, other in zip((*ours, *found), (*theirs, *wanted), strict=True):
            assert (one[place] - other.reshape(one[place].shape)).norm() <= tolerance * other.norm()


def test_a_recurrent_layer_is_two_calls_of_a_program() -> None:
    module, x = made(RECURRENT["gru"], torch.float64)
    graph = StepPrograms(module, x[:8], Y[:8])._graphs[0]
    names = [str(node.target) for node in graph.nodes if "flsimulation" in str(node.target)]
    assert names == ["flsimulation.recurrent.default", "flsimulation.recurrent_backward.default"]
    # counted as it is traced, in some fifty calls; one by one its four steps make many more
    calls = calls_of(module, x[:4], Y[:4], PAIR)
    assert calls is not None
    assert calls.made < 70 < 150 < calls.alone


# --- other layers ---------------------------------------------------------------------------------


def attended(**named: Any) -> Callable[[], Reader]:
    """Self-attention with masks, which may follow from the inputs."""

    def read(module: Any, x: Tensor) -> Tensor:
        given = {name: value(x) if callable(value) else value for name, value in named.items()}
        found, weights = module.layer(x, x, x, **given)
        return (
            found.mean(1)
            if weights is None
            else found.mean(1) + weights.pow(2).mean((1, 2))[:, None]
        )

    return lambda: Reader(read, layer=nn.MultiheadAttention(WIDTH, 2, batch_first=True))


def encoded(**named: Any) -> Callable[[], Reader]:
    def read(module: Any, x: Tensor) -> Tensor:
        given = {name: value(x) if callable(value) else value for name, value in named.items()}
        return module.layer(x, **given).mean(1)

    def make() -> Reader:
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
        return Reader(read, layer=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))

    return make


def causal(x: Tensor) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)


def grouped(module: Any, x: Tensor) -> Tensor:
    """Four heads of queries, two of keys and values."""
    query = module.layer(x).unflatten(-1, (4, 3)).transpose(1, 2)
    key = x.unflatten(-1, (2, 3)).transpose(1, 2)
    found = functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)
    return found.transpose(1, 2).flatten(2).mean(1)


def hidden_rows(module: Any, x: Tensor) -> Tensor:
    """The first row of a mask hides everything."""
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)
    number = torch.zeros(LENGTH, LENGTH, dtype=x.dtype).masked_fill(~mask, -math.inf)
    attention = functional.scaled_dot_product_attention
    return (attention(x, x, module.layer(x), mask) + attention(x, x, x, number)).mean(1)


BEHIND = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
"""What a causal mask hides."""
OTHERS: dict[str, tuple[Callable[[], Reader], Tensor]] = {
    "padding": (
        lambda: Reader(lambda m, x: m.layer(x).mean(1), layer=nn.Embedding(7, WIDTH, 0)),
        TOKENS,
    ),
    "padding from the end": (
        lambda: Reader(lambda m, x: m.layer(x).mean(1), layer=nn.Embedding(7, WIDTH, -2)),
        TOKENS,
    ),
    "attention": (attended(need_weights=False), X),
    "attention and its weights": (attended(), X),
    "causal numbers": (attended(need_weights=False, attn_mask=causal), X),
    "causal truths": (attended(need_weights=False, attn_mask=BEHIND), X),
    "is_causal": (attended(need_weights=False, attn_mask=BEHIND, is_causal=True), X),
    "padded keys": (attended(need_weights=False, key_padding_mask=lambda x: x[..., 0] > 2), X),
    "padded keys, weights": (attended(attn_mask=BEHIND), X),
    "encoder": (encoded(), X),
    "encoder, causal numbers": (encoded(mask=causal), X),
    "encoder, causal truths": (encoded(mask=BEHIND), X),
    "encoder, is_causal": (encoded(mask=causal, is_causal=True), X),
    "encoder, padding": (encoded(src_key_padding_mask=lambda x: x[..., 0] > 2), X),
    "grouped queries": (lambda: Reader(grouped, layer=nn.Linear(WIDTH, 12)), X),
    "rows that see nothing": (lambda: Reader(hidden_rows, layer=nn.Linear(WIDTH, WIDTH)), X),
    "weight norm": (
        lambda: Reader(
            lambda m, x: m.layer(x).mean(1),
            layer=parametrizations.weight_norm(nn.Linear(WIDTH, UNITS)),
        ),
        X,
    ),
    "weight norm of columns": (
        lambda: Reader(
            lambda m, x: m.layer(x.transpose(1, 2)).mean(2),
            layer=parametrizations.weight_norm(nn.Conv1d(WIDTH, UNITS, 2), dim=1),
        ),
        X,
    ),
    "weight norm of all": (
        lambda: Reader(
            lambda m, x: m.layer(x).mean(1),
            layer=parametrizations.weight_norm(nn.Linear(WIDTH, UNITS), dim=None),
        ),
        X,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OTHERS)
def test_other_layers_equal_the_trainer(kind: str, dtype: torch.dtype) -> None:
    make, x = OTHERS[kind]
    check(make, dtype, x=x)


class Penalised(Reader):
    """A loss with the size of its gradient by the inputs."""

    def loss(self, batch: Any) -> Tensor:
        x = batch[0].mean(1).clone().requires_grad_(True)
        found = torch.tanh(self.head(x))
        (slopes,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        loss: Tensor = functional.cross_entropy(found, batch[1]) + slopes.pow(2).sum(1).mean()
        return loss


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradient_penalties_equal_the_trainer(optimizer: str) -> None:
    check(lambda: Penalised(last), optimizer=optimizer)
    check(lambda: Penalised(last), torch.float32, optimizer)


def test_spectral_norm_has_a_form_inside_of_vmap() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(WIDTH, UNITS)).double()
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    own = {name: torch.stack([t.detach(), t.detach() * 2]) for name, t in tensors}

    def one(own: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        copies = {name: tensor.clone() for name, tensor in own.items()}
        with Rewritten():
            return functional_call(layer, copies, (x,)), copies

    with without_fallback(), exactly():
        found, moved = vmap(one)(own, X[:2])
    theirs = {name: tensor[1].clone() for name, tensor in own.items()}
    wanted = functional_call(layer, theirs, (X[1],))
    assert (found[1] - wanted).norm() <= 1e-12 * wanted.norm()
    for name, value in theirs.items():
        assert (moved[name][1] - value).norm() <= 1e-12 * value.norm(), name
    assert not torch.equal(
        moved["parametrizations.weight.0._u"], own["parametrizations.weight.0._u"]
    )


# --- draws ----------------------------------------------------------------------------------------


def test_draws_by_tensors_are_drawn_for_each_client() -> None:
    count = 4000
    means, shares = torch.tensor([0.0, 5.0]), torch.tensor([0.2, 0.7])

    def one(mean: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        with Rewritten():
            normal = torch.normal(mean.expand(count), 2.0)
            return normal, torch.bernoulli(share.expand(count)) + share.expand(count).bernoulli()

    torch.manual_seed(0)
    with without_fallback():
        normals, coins = vmap(one, randomness="different")(means, shares)
    assert normals.mean(1) == pytest.approx(means, abs=0.15)
    assert normals.std(1) == pytest.approx([2.0, 2.0], rel=0.1)
    assert coins.mean(1) == pytest.approx(2 * shares, abs=0.06)
    assert set(coins.unique().tolist()) == {0.0, 1.0, 2.0}
    assert not torch.equal(normals[0], normals[1] - 5)


# --- refused --------------------------------------------------------------------------------------


def of_several_lengths(module: Any, x: Tensor) -> Tensor:
    lengths = [1 + place % 3 for place in range(len(x))]
    given = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return module.layer(given)[1][0]


def of_lengths_in_data(module: Any, x: Tensor) -> Tensor:
    lengths = (x[..., 0] > -9).sum(1)
    given = rnn.pack_padded_sequence(x, lengths, batch_first=True)
    return module.layer(given)[1][0]


class TwiceThrough(Reader):
    """A penalty on the gradient of a recurrent layer."""

    def loss(self, batch: Any) -> Tensor:
        x = batch[0].clone().requires_grad_(True)
        found = self.head(last(self, x))
        (slopes,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        return functional.cross_entropy(found, batch[1]) + slopes.pow(2).mean()


REFUSED: dict[str, tuple[Callable[[], Reader], Tensor, str]] = {
    "proj_size": (
        lambda: Reader(last, layer=cell(LSTM, proj_size=2)),
        X,
        r"^LSTM with proj_size cannot be trained for many clients at once \(.*py:\d+\)$",
    ),
    "lengths": (
        lambda: Reader(of_several_lengths, layer=cell(GRU)),
        X,
        r"^packed sequences of several lengths cannot be trained .*_layers\.py:\d+\)$",
    ),
    "lengths in data": (
        lambda: Reader(of_lengths_in_data, layer=cell(GRU)),
        X,
        r"^sizes and lengths in tensors cannot be trained .*_layers\.py:\d+\)$",
    ),
    "max_norm": (
        lambda: Reader(lambda m, x: m.layer(x).mean(1), layer=nn.Embedding(7, 5, max_norm=1.0)),
        TOKENS,
        r"^training_step changes the parameter layer.weight$",
    ),
    "sparse": (
        lambda: Reader(lambda m, x: m.layer(x).mean(1), layer=nn.Embedding(7, 5, sparse=True)),
        TOKENS,
        r"^embedding with sparse cannot be trained",
    ),
    "by frequency": (
        lambda: Reader(
            lambda m, x: m.layer(x).mean(1), layer=nn.Embedding(7, 5, scale_grad_by_freq=True)
        ),
        TOKENS,
        r"^embedding with scale_grad_by_freq cannot be trained",
    ),
    "gradients of gradients": (
        lambda: TwiceThrough(last, layer=cell(GRU)),
        X,
        r"^the gradient of a recurrent layer's gradient cannot be trained for many clients at once$",
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_form_is_refused_with_its_line(kind: str) -> None:
    make, x, reason = REFUSED[kind]
    module, x = made(make, torch.float32, x=x)
    with pytest.raises(NotStackable, match=reason):
        StackedTrainer(module, Train(batch_size=4), x, Y)


def test_a_branch_on_data_or_draws_is_still_refused() -> None:
    def read(module: Any, x: Tensor) -> Tensor:
        return x.mean(1) if bool((x > 0).all()) else -x.mean(1)

    def by_buffer(module: Any, x: Tensor) -> Tensor:
        return x.mean(1) if module.layer.steps > 0 else -x.mean(1)

    def by_draw(module: Any, x: Tensor) -> Tensor:
        return x.mean(1) if bool(torch.rand(()) < 0.5) else -x.mean(1)

    counting = nn.Module()
    counting.register_buffer("steps", torch.zeros(()))
    for way, layers in ((read, {}), (by_buffer, {"layer": counting}), (by_draw, {})):
        module, x = made(functools.partial(Reader, way, **layers), torch.float32)
        with pytest.raises(NotStackable):
            StackedTrainer(module, Train(batch_size=4), x, Y)
