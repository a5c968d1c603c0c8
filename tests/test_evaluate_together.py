"""Many clients' evaluation at once: the same scores as one by one, or left to be made so."""

from __future__ import annotations

import dataclasses
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import BinaryF1Score
from torchmetrics.regression import MeanSquaredError, R2Score, SpearmanCorrCoef

from flsimulation.client.workspace import Workspace
from flsimulation.clock import SYSTEM, Clock, VirtualClock
from flsimulation.errors import ClientError
from flsimulation.events import Checkpoint, ClientReplied, RoundFinished
from flsimulation.messages.state_dicts import held_state
from flsimulation.models import CNN, MLP, Logistic, TwoNN
from flsimulation.runtimes.inprocess import run_in_process
from flsimulation.training import Batches, Engine
from flsimulation.training.direct import DirectEvaluator
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.measured import Measured
from flsimulation.training.stacked import evaluation
from flsimulation.training.stacked.evaluation import StackedEvaluator

pytestmark = pytest.mark.seconds

X = torch.tensor(np.random.default_rng(0).normal(size=(90, 6)), dtype=torch.float32)
Y = torch.tensor(np.arange(90) % 3)
IMAGES = torch.tensor(np.random.default_rng(1).normal(size=(90, 1, 8, 8)), dtype=torch.float32)


class Clients:
    """Clients with so many examples each, and who of them was evaluated alone."""

    def __init__(
        self,
        module: pl.LightningModule,
        sizes: Sequence[int],
        x: Tensor = X,
        y: Tensor = Y,
        batch: int = 1000,
        clock: Clock = SYSTEM,
    ) -> None:
        rows = np.random.default_rng(2).permutation(len(x))
        ends = np.cumsum(sizes)
        self.parts = [
            Batches(x, y, rows[e - s : e], batch) for s, e in zip(sizes, ends, strict=True)
        ]
        self.state = {name: value * 1.5 for name, value in module.state_dict().items()}
        self.module = module
        self.direct = DirectEvaluator(module, clock=clock)
        self.together = StackedEvaluator(self.direct, x, y)
        self.alone: list[int] = []

    def one_by_one(
        self, place: int, direct: DirectEvaluator, expires: float | None
    ) -> dict[str, float] | ClientError:
        try:
            return direct.evaluate(self.state, self.parts[place], seed=place, expires=expires)
        except ClientError as error:
            return error

    def evaluate(
        self, expires: float | None = None
    ) -> Iterator[dict[int, dict[str, float] | ClientError]]:
        def alone(place: int) -> dict[str, float] | ClientError:
            self.alone.append(place)
            return self.one_by_one(place, self.direct, expires)

        return self.together.evaluate(self.state, self.parts, alone, expires)

    def assert_as_one_by_one(self) -> None:
        passes = list(self.evaluate())
        found = {place: scored for some in passes for place, scored in some.items()}
        assert sum(map(len, passes)) == len(found) == len(self.parts)
        for place in range(len(self.parts)):
            expected = self.one_by_one(place, DirectEvaluator(self.module), None)
            scored = found[place]
            if isinstance(expected, ClientError):
                assert (scored.reason, str(scored)) == (expected.reason, str(expected))
                continue
            assert list(scored) == list(expected)
            assert scored == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["mlp", "2nn", "cnn", "logistic"])
def test_uneven_clients_of_shipped_models_score_as_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    module: pl.LightningModule = {
        "mlp": lambda: MLP(6, 3, hidden=(5, 4)),
        "2nn": lambda: TwoNN(6, 3),
        "cnn": lambda: CNN(side=8, classes=3, width=2),
        "logistic": lambda: Logistic(6, 3),
    }[name]()
    sizes = [6, 5, 6, 1, 6, 0, 5, 6, 1, 7, 6, 5, 6, 1, 5, 6]
    clients = Clients(module, sizes, IMAGES if name == "cnn" else X)
    clients.assert_as_one_by_one()
    assert clients.alone == [5, 9]  # the one with nothing, and the only one of its size
    clients.assert_as_one_by_one()


def test_clients_with_several_batches_score_as_one_by_one() -> None:
    clients = Clients(MLP(6, 3, hidden=(5, 4)), [10, 3, 10, 3, 10, 3, 4], batch=4)
    clients.assert_as_one_by_one()
    assert clients.alone == [0, 2, 4, 6]


class Logging(pl.LightningModule):
    """Scores a batch as the test asks; has layers that differ in evaluation."""

    def __init__(self, score: Callable[..., Any], **kept: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
        self.register_buffer("total", torch.zeros(()))
        self.score, self.kept, self.count = score, kept, 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.score(self, x, functional.cross_entropy(self.layer(x), y), batch_idx)


TOGETHER: dict[str, Callable[..., Any]] = {
    "mean": lambda m, x, v, i: m.log("val_loss", v),
    "names": lambda m, x, v, i: m.log_dict({"valid/loss": v, "acc": v / 2, "f1": 0.25}),
    "steps": lambda m, x, v, i: (
        m.log("a", v, on_step=True, on_epoch=True),
        m.log("b", v, on_step=True, on_epoch=False),
        m.log("c", v.double(), on_epoch=True),
    ),
    "reductions": lambda m, x, v, i: (
        m.log("sum", v, reduce_fx="sum"),
        m.log("least", v, reduce_fx="min"),
        m.log("most", v, reduce_fx=torch.max),
    ),
    "sizes": lambda m, x, v, i: (
        m.log("own", v, batch_size=len(x)),
        m.log("double", v, batch_size=2 * len(x) + i),
        m.log("n", len(x)),
        m.log("whole", torch.tensor(len(x)), prog_bar=True),
    ),
    "not finite": lambda m, x, v, i: m.log("root", torch.sqrt(v - 1.2)),
    "mode": lambda m, x, v, i: m.log("m", float(m.training) + float(torch.is_grad_enabled())),
}


def count(module: Any, x: Tensor, loss: Tensor, number: int) -> None:
    module.count += 1
    module.log("count", loss + module.count)


def keep(module: Any, x: Tensor, loss: Tensor, number: int) -> None:
    module.kept.setdefault("seen", []).append(loss.detach())
    module.log("seen", float(len(module.kept["seen"])))


def sum_up(module: Any, x: Tensor, loss: Tensor, number: int) -> None:
    module.total += len(x)
    module.log("total", module.total)


def move(module: Any, x: Tensor, loss: Tensor, number: int) -> None:
    module.layer[2].bias += 1.0
    module.log("val_loss", loss)


def normalize(module: Any, x: Tensor, loss: Tensor, number: int) -> None:
    (aside,) = module.kept["aside"]
    module.log("mean", loss + aside.running_mean[0])
    aside.running_mean = aside.running_mean + 1.0


ALONE: dict[str, Callable[..., Any]] = {
    "item": lambda m, x, v, i: m.log("v", v.item()),
    "numpy": lambda m, x, v, i: m.log("v", float(np.median(v.numpy()))),
    "branch": lambda m, x, v, i: m.log("v", v if v > 1 else -v),
    "torch's random": lambda m, x, v, i: m.log("r", v + torch.rand(())),
    "numpy's random": lambda m, x, v, i: m.log("r", v + 1e-4 * np.random.rand()),
    "python's random": lambda m, x, v, i: m.log("r", v + 1e-4 * random.random()),
    "nothing": lambda m, x, v, i: None,
    "a tensor of a size": lambda m, x, v, i: m.log("v", v, batch_size=(x > 0).sum()),
    "its own count": count,
    "kept tensors": keep,
    "a buffer": sum_up,
    "a weight": move,
    "a module in a list": normalize,
    "something else": lambda m, x, v, i: m.log(
        "v", v + float(torch._C._functorch.is_batchedtensor(x))
    ),
    "another name": lambda m, x, v, i: m.log(
        "together" if torch._C._functorch.is_batchedtensor(x) else "alone", v
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_what_is_logged_together_is_what_each_client_logs(name: str) -> None:
    clients = Clients(Logging(TOGETHER[name]), [6] * 9)
    clients.assert_as_one_by_one()
    clients.assert_as_one_by_one()
    assert clients.alone == []


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_done_together_is_done_alone_from_then_on(name: str) -> None:
    aside = [nn.BatchNorm1d(6)] if name == "a module in a list" else []
    clients = Clients(Logging(ALONE[name], aside=aside), [6] * 9)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    clients.assert_as_one_by_one()
    assert clients.alone == list(range(9))
    vars(clients.together)["_scores"] = lambda *_: pytest.fail("tried again")
    clients.assert_as_one_by_one()
    assert clients.alone == [*range(9), *range(9)]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before


def test_random_numbers_that_another_thread_draws_do_not_count() -> None:
    drawn = list[int]()

    def score(module: Any, x: Tensor, value: Tensor, number: int) -> None:
        if not drawn:  # as Flower's heartbeats do
            thread = threading.Thread(target=lambda: drawn.append(random.getrandbits(8)))
            thread.start()
            thread.join()
        module.log("v", value)

    clients = Clients(Logging(score), [6] * 9)
    list(clients.evaluate())
    assert drawn
    assert clients.alone == []
    clients.assert_as_one_by_one()


def test_what_vmap_would_do_in_a_loop_is_done_alone() -> None:
    score = lambda m, x, v, i: m.log("v", torch.bincount((x[:, 0] > 0).long(), minlength=2)[1])  # noqa: E731
    clients = Clients(Logging(score), [6] * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clients.assert_as_one_by_one()
    assert clients.alone == list(range(5))


def test_a_client_whose_evaluation_fails_harms_no_other() -> None:
    clients = Clients(MLP(6, 3, hidden=(5, 4)), [6] * 11, y=Y.clone())
    clients.assert_as_one_by_one()
    assert clients.alone == []
    y = clients.parts[6]._y
    row = clients.parts[6].index_batches()[0][2]
    y[row] = 9
    clients.assert_as_one_by_one()
    found = {place: scored for some in clients.evaluate() for place, scored in some.items()}
    assert [place for place, own in found.items() if isinstance(own, ClientError)] == [6]
    assert str(found[6]).startswith("IndexError: Target 9 is out of bounds.")
    y[row] = 0
    clients.alone.clear()
    clients.assert_as_one_by_one()
    assert clients.alone == []


def test_a_pass_is_bounded_in_examples_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = MLP(6, 3, hidden=(5, 4))
    monkeypatch.setattr(evaluation, "_PASS_EXAMPLES", 30)
    clients = Clients(module, [6] * 15)
    assert [list(some) for some in clients.evaluate()] == [
        [0, 1, 2, 3],  # are compared
        [4, 5, 6, 7, 8],
        [9, 10, 11, 12, 13],
        [14],
    ]
    # of an example: 4 x (5 + 5 + 4 + 4 + 3) bytes of layers, 8 of the label that is most likely,
    # 1 of whether it is right; of a client: 2 numbers of 4
    monkeypatch.setattr(evaluation, "_PASS_BYTES", 7 * (6 * 93 + 8) + 1)
    monkeypatch.setattr(evaluation, "_PASS_EXAMPLES", 2000)
    clients = Clients(module, [6] * 15)
    assert [len(some) for some in clients.evaluate()] == [4, 7, 4]


def test_a_model_that_changed_is_seen() -> None:
    clients = Clients(MLP(6, 3, hidden=(5, 4)), [6] * 9)
    clients.assert_as_one_by_one()
    clients.state = {name: value * -2.0 for name, value in clients.state.items()}
    clients.assert_as_one_by_one()
    assert clients.alone == []


def test_whoever_comes_after_the_deadline_is_late() -> None:
    clock = VirtualClock()
    clients = Clients(MLP(6, 3, hidden=(5, 4)), [6] * 12, clock=clock)
    coming = clients.evaluate(expires=1.0)
    assert all(isinstance(own, dict) for own in next(coming).values())
    clock.sleep(2.0)
    late = {place: own for some in coming for place, own in some.items()}
    assert sorted(late) == list(range(4, 12))
    assert {str(own) for own in late.values()} == {"it was not done before the round's deadline"}


OWN = """
import torch
from flsimulation.models import MLP

class Own(MLP):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0], batch[1].clamp(max=2)), batch_idx)
"""


class OneByOne:
    """An engine that evaluates clients one by one, and is another's for the rest."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def evaluate(self, model: Any, jobs: Any, expires: float | None = None) -> Iterator[Any]:
        for job in jobs:
            yield from self._engine.evaluate(model, [job], expires)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@pytest.mark.parametrize("engine", ["auto", "lightning"])
def test_a_federation_that_evaluates_together_tells_what_one_does_client_by_client(
    make_experiment: Any,
    own_modules: Any,
    recorder: Any,
    tmp_path: Any,
    dataset: Any,
    engine: str,
) -> None:
    parts = {n: getattr(dataset, n).numpy() for n in ("x_train", "y_train", "x_test", "y_test")}
    parts["y_train"] = np.where(np.arange(240) == 5, 7, parts["y_train"])
    np.savez(tmp_path / "bad.npz", **parts)
    experiment = make_experiment(
        data={"dataset": f"file:{tmp_path / 'bad.npz'}", "clients": 20, "validation-fraction": 0.9},
        model={"class": f"{own_modules(OWN)}:Own", "args": {"inputs": 6, "classes": 3}},
        strategy={"rounds": 2, "fraction-evaluate": 0.9},
        train={"engine": engine},
        evaluate={"clients": 20},
    )
    together, alone = type(recorder)(), type(recorder)()
    run_in_process(experiment, [together])
    space = Workspace.load(experiment)
    apart = dataclasses.replace(space, engine=OneByOne(space.engine))
    run_in_process(experiment, [alone], apart)

    def told(recorder: Any) -> dict[Any, Any]:
        return {
            (e.round, e.phase, e.partition): (e.metrics, e.reason, e.error)
            for e in recorder.of(ClientReplied)
            if e.phase != "train"
        }

    expected = told(alone)
    assert len(expected) == 2 * 18 + 20
    assert {where: why for where, (_, *why) in told(together).items()} == {
        where: why for where, (_, *why) in expected.items()
    }
    trainer = LocalTrainer(space.module, experiment.train)
    final = held_state(together.of(Checkpoint)[-1].arrays)
    failed = {p for (_, _, p), (_, reason, _) in expected.items() if reason is not None}
    assert len(failed) == 1
    for where, (metrics, *_) in told(together).items():
        assert metrics == (expected[where][0] and pytest.approx(expected[where][0], rel=1e-6))
        if metrics and where[1] == "final":
            part = space.validation_batches(where[2])
            wanted = {**trainer.evaluate(final, part), "num-examples": part.examples}
            assert metrics == pytest.approx(wanted, rel=1e-6)
    for one, other in zip(together.of(RoundFinished), alone.of(RoundFinished), strict=True):
        assert one.federated == pytest.approx(other.federated, rel=1e-6)
        assert one.failures == other.failures


class Metrics(pl.LightningModule):
    """Logs metric objects; without checks of values their updates are the same for many clients."""

    def __init__(self, *, checks: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 3)
        self.rank = SpearmanCorrCoef()
        self.f1 = BinaryF1Score(validate_args=checks)
        self.mse, self.r2 = MeanSquaredError(), R2Score()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self.layer(x)
        self.log("val_loss", functional.cross_entropy(out, y))
        self.f1.update((out[:, 0] > 0).long(), (y == 0).long())
        self.log("f1", self.f1)
        for name in ("rank", "mse", "r2"):
            metric = getattr(self, name)
            metric.update(out[:, 1], x[:, 1])
            self.log(name, metric)


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save all targets")
@pytest.mark.parametrize("checks", [False, True])
def test_metric_objects_have_their_states_together_if_their_updates_allow_it(checks: bool) -> None:
    clients = Clients(Metrics(checks=checks), [6, 1] * 9)
    clients.assert_as_one_by_one()
    clients.assert_as_one_by_one()
    assert bool(clients.alone) == checks
    found = {place: own for some in clients.evaluate() for place, own in some.items()}
    for place in range(18):
        expected = DirectEvaluator(clients.module).evaluate(clients.state, clients.parts[place])
        own = found[place]
        assert isinstance(own, Measured)
        assert own.why_not == expected.why_not
        assert ("r2" in own.why_not) == (place % 2 == 1)
        assert own.states.keys() == {"f1", "rank", "mse", "r2"}
        for name, (path, arrays) in own.states.items():
            assert path == expected.states[name].path
            assert arrays.keys() == expected.states[name].arrays.keys()
            for state, array in arrays.items():
                other = expected.states[name].arrays[state]
                assert (array.dtype, array.shape) == (other.dtype, other.shape)
                np.testing.assert_allclose(array, other, rtol=1e-5, atol=1e-6)
