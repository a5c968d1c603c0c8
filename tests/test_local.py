"""One client's training: equal to the loop that anyone would write, and without memory."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tests.conftest import PATIENCE
from torch.nn import functional

from flsimulation.clock import VirtualClock
from flsimulation.errors import ClientError, InputError
from flsimulation.experiment.spec import Train
from flsimulation.models import MLP
from flsimulation.training import Batches
from flsimulation.training.lightning import LocalTrainer
from flsimulation.training.scores import scores

X = torch.tensor(np.random.default_rng(0).normal(size=(23, 6)), dtype=torch.float32)
Y = torch.tensor(np.arange(23) % 3)


def small_mlp(**args: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(6, 3, hidden=(5, 4), **args)


def batches(size: int = 8, seed: int | None = 7) -> Batches:
    rng = None if seed is None else functools.partial(np.random.default_rng, seed)
    return Batches(X, Y, np.arange(23), size, rng)


def by_hand(
    module: MLP, epochs: int, mu: float = 0.0, clip: float = 0.0
) -> tuple[dict[str, torch.Tensor], float]:
    """The plain loop: state afterwards and the last epoch's mean loss over examples."""
    module = copy.deepcopy(module)
    start = [p.detach().clone() for p in module.parameters()]
    optimizer, data = module.configure_optimizers(), batches()
    for _ in range(epochs):
        total = 0.0
        for x, y in data:
            optimizer.zero_grad()
            loss = functional.cross_entropy(module(x), y)
            proximal = sum(((p - s) ** 2).sum() for p, s in zip(module.parameters(), start))
            (loss + mu / 2 * proximal).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            total += loss.item() * len(y)
    return module.state_dict(), total / 23


def assert_equal(
    state: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0
) -> None:
    assert state.keys() == other.keys()
    for name in state:
        torch.testing.assert_close(state[name], other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_fit_equals_the_plain_loop(optimizer: str, epochs: int) -> None:
    module = small_mlp(optimizer=optimizer, learning_rate=0.05)
    fit = LocalTrainer(module, Train(epochs=epochs)).fit(module.state_dict(), batches(), seed=1)
    state, loss = by_hand(module, epochs)
    assert_equal(fit.state, state)
    assert fit.scores["loss"] == pytest.approx(loss, rel=1e-6)
    assert fit.steps == 3 * epochs


def test_the_proximal_term_acts() -> None:
    module = small_mlp(optimizer="sgd", learning_rate=0.1)
    trainer = LocalTrainer(module, Train(epochs=2))
    fit = trainer.fit(module.state_dict(), batches(), seed=1, proximal_mu=0.7)
    assert_equal(fit.state, by_hand(module, 2, mu=0.7)[0], 1e-6)
    with pytest.raises(AssertionError):
        assert_equal(fit.state, by_hand(module, 2)[0], 1e-6)


def test_the_gradient_is_clipped_after_the_proximal_term() -> None:
    module = small_mlp(optimizer="sgd", learning_rate=0.5)
    trainer = LocalTrainer(module, Train(epochs=2, gradient_clip=0.05))
    fit = trainer.fit(module.state_dict(), batches(), seed=1, proximal_mu=2.0)
    assert_equal(fit.state, by_hand(module, 2, mu=2.0, clip=0.05)[0], 1e-6)


def test_a_kept_trainer_gives_each_client_what_a_new_one_gives() -> None:
    module = small_mlp(learning_rate=0.05)
    kept = LocalTrainer(module, Train(epochs=2))
    first = kept.fit(module.state_dict(), batches(), seed=1)
    kept.evaluate(first.state, batches(seed=None))
    second = kept.fit(module.state_dict(), batches(), seed=1)
    assert_equal(first.state, second.state)
    assert first.scores == second.scores
    assert first.steps == second.steps == 6


def test_one_clients_proximal_term_and_deadline_do_not_reach_the_next() -> None:
    clock = VirtualClock(999.0)
    module = small_mlp(optimizer="sgd", learning_rate=0.1)
    trainer = LocalTrainer(module, Train(), clock)
    trainer.fit(module.state_dict(), batches(), seed=1, proximal_mu=9.0, expires=1000.0)
    clock.sleep(2.0)
    fit = trainer.fit(module.state_dict(), batches(), seed=1)
    assert_equal(fit.state, by_hand(module, 1)[0])


class Counting(MLP):
    """Notes what the Trainer tells it, and drops units at random."""

    def __init__(self) -> None:
        super().__init__(6, 3, hidden=(5, 4))
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, self.global_step))
        self.log("steps_seen", float(len(self.seen)), on_step=False, on_epoch=True, reduce_fx="max")
        x, y = batch
        return functional.cross_entropy(functional.dropout(self(x), 0.5), y)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [pl.callbacks.EarlyStopping("steps_seen", patience=99)]


def test_epochs_steps_callbacks_and_attributes_start_anew_for_each_client() -> None:
    module = Counting()
    trainer = LocalTrainer(module, Train(epochs=2))
    fits = [trainer.fit(module.state_dict(), batches(), seed=s) for s in (1, 1, 2)]
    assert [fit.scores["steps_seen"] for fit in fits] == [6.0, 6.0, 6.0]
    assert [fit.steps for fit in fits] == [6, 6, 6]
    assert module.seen == []
    assert_equal(fits[0].state, fits[1].state)  # the same draws of dropout with the same seed
    with pytest.raises(AssertionError):
        assert_equal(fits[0].state, fits[2].state)


def test_the_given_state_is_not_changed() -> None:
    module = small_mlp(learning_rate=0.1)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    LocalTrainer(module, Train()).fit(state, batches(), seed=1)
    assert_equal(state, module.state_dict())


def test_evaluation_is_the_mean_over_examples_whatever_the_batches() -> None:
    module = small_mlp()
    trainer = LocalTrainer(module, Train())
    logits = module(X)
    for size in (4, 23):
        found = trainer.evaluate(module.state_dict(), batches(size, seed=None))
        assert found["loss"] == pytest.approx(functional.cross_entropy(logits, Y).item(), rel=1e-6)
        right = (logits.argmax(1) == Y).float().mean().item()
        assert found["accuracy"] == pytest.approx(right, rel=1e-6)


class Failing(MLP):
    def __init__(self, kind: str) -> None:
        super().__init__(6, 3, hidden=(5, 4), optimizer="sgd")
        self.kind = kind

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.kind == "raise":
            raise ValueError("boom")
        if self.kind == "none":
            return None  # type: ignore[return-value]
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.kind == "nan" else loss


@pytest.mark.parametrize(
    ("kind", "reason", "part"),
    [
        ("raise", "error", "ValueError: boom (test_local.py:"),
        ("nan", "diverged", "training loss is nan"),
        ("none", "error", "it made no optimizer step; training_step must return the loss"),
    ],
)
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
def test_a_failure_has_a_reason_and_the_next_client_is_not_touched(
    kind: str, reason: str, part: str
) -> None:
    module = Failing(kind)
    trainer = LocalTrainer(module, Train())
    with pytest.raises(ClientError) as caught:
        trainer.fit(module.state_dict(), batches(), seed=1)
    assert caught.value.reason == reason
    assert part in str(caught.value)
    module.kind = ""
    again = trainer.fit(module.state_dict(), batches(), seed=1)
    assert_equal(again.state, by_hand(module, 1)[0])


def test_weights_that_are_not_finite_are_a_failure() -> None:
    module = small_mlp(optimizer="sgd", learning_rate=1e38)
    with pytest.raises(ClientError, match="not finite|training loss is"):
        LocalTrainer(module, Train()).fit(module.state_dict(), batches(), seed=1)


def test_a_client_stops_when_its_time_is_up() -> None:
    module = small_mlp()
    trainer = LocalTrainer(module, Train())
    with pytest.raises(ClientError, match="deadline") as caught:
        trainer.fit(module.state_dict(), batches(), seed=1, expires=time.time() - 1)
    assert caught.value.reason == "deadline"
    assert (
        trainer.fit(module.state_dict(), batches(), seed=1, expires=time.time() + PATIENCE).steps
        == 3
    )


class Interrupting(MLP):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        raise KeyboardInterrupt


def test_ctrl_c_stays_ctrl_c() -> None:
    import signal

    module, before = Interrupting(6, 3), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        LocalTrainer(module, Train()).fit(module.state_dict(), batches(), seed=1)
    assert signal.getsignal(signal.SIGINT) is before


class Scheduled(MLP):
    """Halves the learning rate where the validation loss stops falling."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"},
        }


def test_a_scheduler_that_monitors_needs_the_validation_loop() -> None:
    module = Scheduled(6, 3)
    trainer = LocalTrainer(module, Train(epochs=2, validate_=True))
    fit = trainer.fit(module.state_dict(), batches(), seed=1, validation=batches(seed=None))
    assert "val_accuracy" in fit.scores or "accuracy" in fit.scores
    with pytest.raises(ClientError, match="val_loss.*; set train.validate = true"):
        trainer.fit(module.state_dict(), batches(), seed=1)


class Manual(pl.LightningModule):
    """Manual optimization, two optimizers, no returned loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = torch.nn.Linear(6, 4), torch.nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = functional.cross_entropy(self.b(self.a(batch[0])), batch[1])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        self.log("train/loss", loss)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.a, self.b)]


def test_manual_optimization_with_two_optimizers_and_the_proximal_term() -> None:
    torch.manual_seed(3)
    module = Manual()
    trainer = LocalTrainer(module, Train())
    assert not trainer.can_evaluate
    fit = trainer.fit(module.state_dict(), batches(), seed=1, proximal_mu=0.5)
    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    start = [w.detach().clone() for w in weights]
    for x, y in batches():
        a, a0, b, b0 = weights
        loss = functional.cross_entropy((x @ a.T + a0) @ b.T + b0, y)
        gradients = torch.autograd.grad(loss, weights)
        weights = [
            (w - 0.1 * (g + 0.5 * (w - s))).detach().requires_grad_()
            for w, g, s in zip(weights, gradients, start)
        ]
    assert_equal(fit.state, dict(zip(module.state_dict(), [w.detach() for w in weights])), 1e-6)
    assert fit.scores["loss"] > 0


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="train.device is 'cuda'.*use 'auto' or 'cpu'"):
        LocalTrainer(small_mlp(), Train(device="cuda"))


def test_lightning_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    module = small_mlp()
    trainer = LocalTrainer(module, Train())
    trainer.evaluate(trainer.fit(module.state_dict(), batches(), seed=1).state, batches())
    captured: Callable[[], Any] = capfd.readouterr
    assert captured() == ("", "")


@pytest.mark.parametrize(
    ("logged", "named"),
    [
        ({"val_loss": 2.0, "val_acc": 0.5}, {"loss": 2.0, "accuracy": 0.5}),
        ({"valid/Loss": 1.0, "f1": 0.3}, {"loss": 1.0, "f1": 0.3}),
        ({"top5_accuracy": 0.9}, {"accuracy": 0.9}),
        ({"lossy": 1.0, "vacc": 2.0}, {"lossy": 1.0, "vacc": 2.0}),
    ],
)
def test_loss_and_accuracy_are_found_by_their_words(
    logged: dict[str, float], named: dict[str, float]
) -> None:
    assert scores(logged) == named


def test_batches_cover_every_example_once_an_epoch_in_a_new_order() -> None:
    data = Batches(X, torch.arange(23), np.arange(5, 18), 4, lambda: np.random.default_rng(0))
    first, second = ([int(i) for _, y in data for i in y] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(5, 18))
    assert first != second
    assert [len(y) for _, y in data] == [4, 4, 4, 1]
    assert (len(data), data.examples) == (4, 13)
