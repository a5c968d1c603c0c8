"""DP-SGD in the clients: each example's gradient is clipped, the sum has noise, in every way of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from flsimulation import load_experiment, resume, run
from flsimulation.client.workspace import Workspace
from flsimulation.errors import InputError, ModelError
from flsimulation.events import RoundFinished
from flsimulation.experiment import Experiment
from flsimulation.privacy.accountant import Mechanism, epsilon_of
from flsimulation.privacy.draws import SecretDraws, fill_words
from flsimulation.training import Job, State, Terms, Trained

pytestmark = pytest.mark.seconds

OWN = """
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional

class Base(pl.LightningModule):
    reduction = "mean"
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.net = self.made()
    def made(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.Tanh(), nn.Linear(12, 10))
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self(batch[0]), batch[1], reduction=self.reduction)
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

class Conv(Base):
    def made(self):
        return nn.Sequential(
            nn.Conv2d(1, 3, 5, stride=2, padding=1), nn.GroupNorm(1, 3), nn.ReLU(),
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(484), nn.Linear(484, 10),
        )

class Recurrent(Base):
    def made(self):
        return Rows()

class Rows(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.gru = nn.GRU(28, 6, num_layers=2 if dropout else 1, dropout=dropout, batch_first=True)
        self.attention, self.out = nn.MultiheadAttention(6, 2, dropout=dropout, batch_first=True), nn.Linear(6, 10)
    def forward(self, x):
        h, _ = self.gru(x[:, 0])
        h, _ = self.attention(h, h, h)
        return self.out(h[:, -1])

class Tokens(Base):
    def made(self):
        return Embedded()

class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(4, 5), nn.Linear(5, 10)
    def forward(self, x):
        return self.out(self.table((x.flatten(1)[:, 300:320].clamp(0, 1) * 3).long()).mean(1))

class Dropped(Base):
    def made(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.Tanh(), nn.Dropout(0.4), nn.Linear(12, 10))

class Permuting(nn.Dropout):
    def forward(self, x):
        return x[:, torch.randperm(12)] if self.p else x

class Permuted(Base):
    def made(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), Permuting(0.4), nn.Linear(12, 10))

class InPlace(Base):
    def made(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.Tanh(), nn.Dropout(0.4, inplace=True), nn.Linear(12, 10))

class Twice(Base):
    def made(self):
        again = nn.Linear(12, 12)
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), again, nn.Tanh(), again, nn.Linear(12, 10))

class DroppedConv(Base):
    def made(self):
        return nn.Sequential(
            nn.Conv2d(1, 3, 5, stride=2), nn.Dropout2d(0.3), nn.ReLU(), nn.Flatten(), nn.AlphaDropout(0.2), nn.Linear(432, 10),
        )

class DroppedRows(Base):
    def made(self):
        return Rows(dropout=0.3)

class Sum(Base):
    reduction = "sum"

class Broken(Base):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step((x.masked_fill((y == 3).view(-1, 1, 1, 1), float("inf")), y), batch_idx)

class Hopeless(Base):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step((x.masked_fill((y >= 0).view(-1, 1, 1, 1), float("inf")), y), batch_idx)

class Stops(Base):
    def configure_callbacks(self):
        return [pl.callbacks.EarlyStopping("train_loss")]

class Watched(Base):
    def on_after_backward(self):
        pass

class Normed(Base):
    def made(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))
"""


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Experiment]:
    (tmp_path / "own_dp.py").write_text(OWN)

    def make(model: str, *sets: str) -> Experiment:
        usual = (
            *(f"model.class={tmp_path / 'own_dp.py'}:{model}", "data.clients=3"),
            *("data.examples-per-client=50", "strategy.rounds=2", "train.device=cpu"),
            *("privacy.mode=example", "privacy.clip=0.5", "privacy.noise-multiplier=1e-9"),
        )
        return load_experiment(None, [*usual, *sets])

    return make


def fitted(experiment: Experiment, engine: str = "auto") -> tuple[Workspace, dict[int, Trained]]:
    train = experiment.train.model_copy(update={"engine": engine})
    space = Workspace.load(experiment.model_copy(update={"train": train}))
    jobs = [space.train_job(partition, 1) for partition in range(experiment.data.clients)]
    results: dict[int, Any] = {}
    for found in space.engine.fit(space.initial_state(), jobs, Terms()):
        results |= found.results
    assert all(isinstance(result, Trained) for result in results.values()), results
    return space, results


def apart(one: State, other: State) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def examples_of(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(job.batches)
    x = torch.cat([batch[0] for batch in batches])
    return x, torch.cat([batch[1] for batch in batches])


def by_hand(module: Any, state: State, x: torch.Tensor, y: torch.Tensor, clip: float) -> State:
    """One step of SGD with learning rate 0.5 on all examples, each gradient clipped, by a plain loop."""
    module.load_state_dict(state)
    total = {p: torch.zeros_like(p, dtype=torch.float64) for p in module.parameters()}
    for own_x, own_y in zip(x, y, strict=True):
        loss = functional.cross_entropy(module(own_x[None]), own_y[None])
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        norm = float(torch.sqrt(sum((g.double() ** 2).sum() for g in gradients)))  # type: ignore[arg-type]
        for sum_, gradient in zip(total.values(), gradients, strict=True):
            sum_ += gradient.double() * min(1.0, clip / norm)
    named = module.named_parameters(remove_duplicate=False)
    return {name: state[name] - (0.5 * total[p] / len(x)).float() for name, p in named}


MODELS = ("Base", "Conv", "Recurrent", "Tokens", "Twice")
DROPPED = ("Dropped", "DroppedConv", "DroppedRows")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", ["stacked", "direct"])
def test_a_step_is_the_mean_of_clipped_gradients(
    made: Callable[..., Experiment], model: str, engine: str
) -> None:
    """With a batch of all examples a Poisson sample is everybody, and an epoch one step."""
    experiment = made(model, "train.batch-size=64")
    space, results = fitted(experiment, engine)
    assert space.engine.name == engine
    start = space.initial_state()
    for partition, result in results.items():
        assert result.steps == 1
        x, y = examples_of(space.train_job(partition, 1))
        assert len(x) == 45
        wanted = by_hand(space.module, start, x, y, 0.5)
        assert apart(result.state, wanted) < 2e-6
        moved = torch.cat([(result.state[n] - start[n]).flatten() for n in start]).norm()
        assert (
            0 < float(moved) <= 0.5 * 0.5 + 1e-6
        )  # learning rate times clip, whatever the examples


class Masked(nn.Module):
    """The model `Dropped` with a factor in place of its dropout, one for each call."""

    def __init__(self, net: nn.Module, factors: torch.Tensor) -> None:
        super().__init__()
        self.net, self._factors = net, iter(factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        net: Any = self.net
        found: torch.Tensor = net[4](torch.tanh(net[1](x.flatten(1))) * next(self._factors))
        return found


@pytest.mark.parametrize("engine", ["stacked", "direct"])
def test_dropout_is_drawn_for_each_example_from_its_clients_own_stream(
    made: Callable[..., Experiment], engine: str
) -> None:
    """The one of its noise: who knows what is dropped sees more than a gradient of the clipping norm."""
    space, results = fitted(made("Dropped", "train.batch-size=64"), engine)
    assert space.engine.name == engine
    masks = []
    for partition, result in results.items():
        job = space.train_job(partition, 1)
        x, y = job.batches.taken(job.batches.parts[0])  # in the order in which samples are drawn
        assert job.noise is not None
        words = np.empty((45, 12), np.uint32)
        fill_words(job.noise(), words)
        masks.append(torch.from_numpy(words < 0.6 * 2**32))
        module = Masked(space.module.net, masks[-1] / 0.6)
        assert apart(result.state, by_hand(module, space.initial_state(), x, y, 0.5)) < 2e-6
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("model", [*MODELS, *DROPPED])
def test_engines_take_the_same_samples_and_the_same_noise(
    made: Callable[..., Experiment], model: str
) -> None:
    experiment = made(model, "train.batch-size=8", "privacy.noise-multiplier=0.8", "train.epochs=2")
    _, stacked = fitted(experiment, "stacked")
    _, direct = fitted(experiment, "direct")
    for partition, result in stacked.items():
        assert result.steps == 12
        assert apart(result.state, direct[partition].state) < 1e-5
        assert result.scores == pytest.approx(direct[partition].scores, rel=1e-4)
    assert apart(stacked[0].state, stacked[1].state) > 1e-3


def test_a_transform_draws_from_its_clients_own_stream(
    made: Callable[..., Experiment], tmp_path: Path
) -> None:
    """And not by a seed that a network's server knows."""
    text = "import torch\ndef change(x, y):\n    return x + torch.rand(x.shape), y\n"
    (tmp_path / "own_change.py").write_text(text)
    change = f"data.transform={tmp_path / 'own_change.py'}:change"
    experiment = made("Base", "train.batch-size=64", change)
    _, results = fitted(experiment, "direct")
    _, stacked = fitted(experiment, "stacked")
    space = Workspace.load(experiment)
    job, start = space.train_job(0, 1), space.initial_state()
    same = job._replace(batches=job.batches.seeded(7))
    other = job._replace(noise=lambda: SecretDraws(bytes(32)))
    again, moved = (
        fitting.results[0]
        for own in (same, other)
        for fitting in space.engine.fit(start, [own], Terms())
    )
    assert isinstance(again, Trained)
    assert isinstance(moved, Trained)
    assert apart(results[0].state, stacked[0].state) < 2e-6
    assert apart(results[0].state, again.state) < 2e-6
    assert apart(results[0].state, moved.state) > 1e-4


def test_what_is_drawn_otherwise_than_by_dropout_is_drawn_by_one_client_after_the_other(
    made: Callable[..., Experiment],
) -> None:
    experiment = made("Permuted", "train.batch-size=64")
    space, results = fitted(experiment)
    assert space.engine.name == "direct"
    with pytest.raises(ModelError, match="draws other random numbers than those of dropout"):
        fitted(experiment, "stacked")
    again = fitted(experiment)[1]
    for partition, result in results.items():
        assert apart(result.state, again[partition].state) == 0
    assert apart(results[0].state, results[1].state) > 1e-3


def test_an_empty_sample_shows_the_loss_of_one_example(made: Callable[..., Experiment]) -> None:
    """Whatever else fills it up: clients of other sizes, or nothing."""
    sets = ("data.examples-per-client=2", "data.min-examples=2", "data.validation-fraction=0")
    experiment = made("Dropped", *sets, "train.batch-size=1", "data.clients=30")
    _, stacked = fitted(experiment, "stacked")
    _, direct = fitted(experiment, "direct")
    for partition, result in stacked.items():
        assert result.scores == pytest.approx(direct[partition].scores, rel=1e-5)


@pytest.mark.parametrize("model", [*MODELS, *DROPPED])
def test_programs_of_steps_train_as_vmap_does(
    made: Callable[..., Experiment], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, since it depends on what came before whether a shape has a program."""
    experiment = made(model, "train.batch-size=8", "privacy.noise-multiplier=0.8", "train.epochs=2")
    _, called = fitted(experiment, "stacked")
    monkeypatch.setattr("flsimulation.training.private.programs.OFTEN", 0)
    traced: list[Any] = []
    step = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: (traced.append(a), step(*a, **k))[1]
    )
    space = Workspace.load(experiment)
    fits = [
        space.engine.fit(space.initial_state(), [space.train_job(p, 1) for p in range(3)], Terms())
        for _ in range(2)
    ]
    results = [fit.results for fit in fits[0]]
    traced.clear()
    results += [fit.results for fit in fits[1]]
    # The second time there is a program for each shape. A recurrent step has too many calls; of a layer
    # that is there twice, PyTorch's functional call changes the module.
    assert bool(traced) == (model in ("Recurrent", "DroppedRows", "Twice"))
    for found in results:
        for partition, result in found.items():
            assert isinstance(result, Trained)
            assert apart(result.state, called[partition].state) == 0
            assert result.scores == called[partition].scores


def test_without_clipping_and_noise_a_full_batch_trains_as_without_privacy(
    made: Callable[..., Experiment],
) -> None:
    private = made("Base", "train.batch-size=64", "train.epochs=5", "privacy.clip=1000.0")
    _, ours = fitted(private, "stacked")
    plain = private.model_copy(update={"privacy": load_experiment(None).privacy})
    _, theirs = fitted(plain, "direct")
    for partition, result in ours.items():
        assert apart(result.state, theirs[partition].state) < 2e-6


def test_the_noise_has_the_deviation_that_the_accountant_counts(
    made: Callable[..., Experiment],
) -> None:
    quiet, noisy = (
        fitted(made("Base", "train.batch-size=64", f"privacy.noise-multiplier={sigma}"), "stacked")[
            1
        ]
        for sigma in ("1e-9", "2.0")
    )
    for partition, result in noisy.items():
        gaps = torch.cat(
            [(result.state[n] - quiet[partition].state[n]).flatten() for n in result.state]
        )
        expected = 0.5 * 2.0 * 0.5 / 45  # learning rate, multiplier, clip, examples of a step
        assert float(gaps.std()) == pytest.approx(expected, rel=0.03)
        assert abs(float(gaps.mean())) < 4 * expected / np.sqrt(len(gaps))
        assert not torch.equal(gaps[:100], torch.zeros(100))


class Words:
    """A stream of noise that returns certain bytes."""

    def __init__(self, last: int) -> None:
        self._last = last

    def bytes(self, length: int) -> bytes:
        return bytes([5] * (length - 1) + [self._last])

    def random(self, size: int) -> np.ndarray:
        return np.zeros(size)


def test_noise_depends_on_more_than_a_seed_of_32_bits(made: Callable[..., Experiment]) -> None:
    """Else it could be found by trying all of them (PyTorch's generators keep 32 bits of a seed)."""
    space = Workspace.load(made("Base", "train.batch-size=64", "privacy.noise-multiplier=2.0"))
    job, states = space.train_job(0, 1), []
    for last in (1, 1, 2):
        own = job._replace(noise=lambda last=last: Words(last))
        (fitted,) = space.engine.fit(space.initial_state(), [own], Terms())
        states.append(fitted.results[0].state)  # type: ignore[union-attr]
    assert apart(states[0], states[1]) == 0
    assert apart(states[0], states[2]) > 0.001


@pytest.mark.parametrize("batch", [1, 64])
def test_an_example_whose_loss_is_not_finite_neither_counts_nor_ends_its_clients_training(
    made: Callable[..., Experiment], batch: int
) -> None:
    """With a batch of 64 a client's step takes all its examples, those with the label 3 with an input of infinity."""
    space, results = fitted(made("Broken", f"train.batch-size={batch}"))
    start = space.initial_state()
    for partition, result in results.items():
        assert np.isfinite(result.scores["loss"])
        assert apart(result.state, start) > 0
        if batch == 64:
            x, y = examples_of(space.train_job(partition, 1))
            loss = functional.cross_entropy(space.module(x[y != 3]), y[y != 3])
            assert (y == 3).any()
            assert result.scores["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_steps_sample_each_example_by_itself(made: Callable[..., Experiment]) -> None:
    """The loss of a step is the mean over the drawn examples; with one of 45 on average some are empty."""
    experiment = made("Base", "train.batch-size=1", "train.epochs=2")
    _, results = fitted(experiment, "stacked")
    assert {result.steps for result in results.values()} == {90}
    _, again = fitted(experiment, "stacked")
    assert apart(results[0].state, again[0].state) == 0


@pytest.mark.parametrize(
    ("model", "sets", "said"),
    [
        (
            "Normed",
            [],
            "the layer net.2 is a BatchNorm1d, which mixes the examples of a batch; use GroupN",
        ),
        (
            "Hopeless",
            [],
            "training_step's loss, or its gradient, is not finite for examples of the data",
        ),
        (
            "InPlace",
            [],
            "training_step fails with its dropout: RuntimeError: one of the variables needed for gradient computation has been modified",
        ),
        ("Sum", [], "training_step's loss of a batch is not the mean of its examples' losses"),
        (
            "Stops",
            [],
            "the module has a configure_callbacks of its own, beside the noisy steps; leave it",
        ),
        (
            "Watched",
            [],
            "the module has a on_after_backward of its own, which may see gradients without",
        ),
        (
            "Base",
            ["train.validate=true"],
            "train.validate evaluates between the epochs, beside the noi",
        ),
        (
            "Base",
            ["train.engine=lightning"],
            "train.engine is 'lightning', whose Trainer has no grad",
        ),
        (
            "Base",
            ["train.accumulate=2"],
            "train.accumulate is 2: a step of DP-SGD takes one sample",
        ),
        ("Base", ["train.precision=bf16-mixed"], "train.precision is 'bf16-mixed', in which norms"),
    ],
)
def test_what_cannot_have_the_guarantee_is_refused(
    made: Callable[..., Experiment], model: str, sets: list[str], said: str
) -> None:
    with pytest.raises(ModelError) as raised:
        Workspace.load(made(model, *sets))
    assert f"privacy.mode is 'example', but {said}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_run_states_epsilon_and_a_resumed_one_goes_on_as_if_it_had_not_stopped(
    made: Callable[..., Experiment], tmp_path: Path
) -> None:
    sets = ("train.batch-size=9", "privacy.noise-multiplier=1.1", "strategy.rounds=4")
    events: list[Any] = []
    whole = run(made("Base", *sets), tmp_path / "whole", [events.append])
    found = [event.privacy for event in events if isinstance(event, RoundFinished)]
    for number, privacy in enumerate(found, 1):
        mechanism = Mechanism(1.1, 9 / 45)
        assert privacy["epsilon"] == pytest.approx(epsilon_of(mechanism, 5 * number, 1e-5))

    def stop(event: Any) -> None:
        if isinstance(event, RoundFinished) and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made("Base", *sets), tmp_path / "cut", [stop])
    assert resume(tmp_path / "cut").weights_sha256 == whole.weights_sha256


def test_a_budget_ends_the_run_before_it_is_exceeded(made: Callable[..., Experiment]) -> None:
    mechanism = Mechanism(1.1, 9 / 45)
    budget = epsilon_of(mechanism, 12, 1e-5)  # two rounds of five steps, not three
    sets = ("train.batch-size=9", "privacy.noise-multiplier=1.1", "strategy.rounds=4")
    result = run(made("Base", *sets, f"privacy.budget-epsilon={budget}"))
    assert (result.state, result.rounds) == ("completed", 2)
    with pytest.raises(InputError, match=r"privacy.budget-epsilon is 0.1, but one round spends"):
        run(made("Base", *sets, "privacy.budget-epsilon=0.1"))


def test_epsilon_asked_for_is_that_of_the_client_that_is_worst_off(
    made: Callable[..., Experiment],
) -> None:
    events: list[Any] = []
    sizes = ("data.partition=linear", "data.clients=4", "train.batch-size=8")
    run(
        made("Base", *sizes, "privacy.noise-multiplier=0.0", "privacy.epsilon=4.0"),
        None,
        [events.append],
    )
    last = [event.privacy for event in events if isinstance(event, RoundFinished)][-1]
    assert 3.9 < last["epsilon"] <= 4.0


def test_modules_are_as_before(made: Callable[..., Experiment]) -> None:
    space, _ = fitted(made("Base"), "stacked")
    assert not any(isinstance(part, nn.BatchNorm1d) for part in space.module.modules())
    assert not any(part._forward_hooks for part in space.module.modules())
