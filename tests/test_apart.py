"""The measure of `flsim verify`: neither blind to a change of one array, nor alarmed by roundings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flsimulation.studies.apart import arrays_apart, scores_apart, worst
from flsimulation.studies.verify import verify_engines

RNG = np.random.default_rng(0)
LAYER = RNG.normal(size=(200, 100)).astype(np.float32)
BIAS = RNG.normal(size=3).astype(np.float32) * np.float32(0.01)
MASK = np.triu(np.full((4, 4), np.float32(-1e9)), 1)
INF, NAN = float("inf"), float("nan")


def apart(one: dict[str, Any], other: dict[str, Any], **named: Any) -> dict[str, float]:
    return arrays_apart(one, other, 1e-5, **named)


def test_no_array_hides_another() -> None:
    other = RNG.normal(size=LAYER.shape).astype(np.float32)
    found = apart({"layer": LAYER, "mask": MASK}, {"layer": other, "mask": MASK})
    assert found["mask"] == 0.0
    assert found["layer"] == pytest.approx(2**0.5, rel=0.05)
    assert worst(found) == ("layer", found["layer"])


@pytest.mark.parametrize("start", [None, {"layer": LAYER * np.float32(0.9), "bias": BIAS * 0}])
def test_a_thousandth_of_one_small_array_is_seen(start: Any) -> None:
    one, other = {"layer": LAYER, "bias": BIAS}, {"layer": LAYER, "bias": BIAS * np.float32(1.001)}
    found = apart(one, other, start=start)
    assert found["layer"] == 0.0
    assert found["bias"] == pytest.approx(1e-3, rel=0.05 if start is None else 0.8)
    assert found["bias"] > 1e-4  # the tolerance is 1e-5


def test_one_number_of_a_constant_array_is_seen_beside_large_ones() -> None:
    start = np.float32([-1e9, 0.5, 0.0])
    for moved in (np.float32([-1e9, 0.501, 0.0]), np.float32([-1e9, 0.5, 0.1])):
        assert apart({"m": start}, {"m": moved}, start={"m": start})["m"] > 1e-3


def test_a_sum_that_cancels_is_no_difference() -> None:
    start = {"layer": LAYER, "bias": np.zeros(3, np.float32)}
    layer = LAYER + np.float32(0.1)
    one = {"layer": layer, "bias": np.float32([3e-9, -1e-9, 0])}
    other = {"layer": layer, "bias": np.float32([-2e-9, 1e-9, 4e-9])}
    assert 0 < apart(one, other, start=start)["bias"] < 1e-5
    assert apart(one, other)["bias"] > 0.1  # nothing tells the size of the steps
    other["bias"] = np.float32([3e-5, -1e-9, 0])
    assert apart(one, other, start=start)["bias"] > 1e-5


def test_what_roundings_make_of_a_number_is_allowed_and_not_more() -> None:
    """Some of an array's numbers are roundings that an optimizer made large."""
    one = np.float32([1.0, 1.0, 0.03, -0.02])
    noise = {"b": np.float32([1e-7, 1e-7, 0.05, 0.001])}
    alike = np.float32([1.0, 1.0, -0.04, 0.06])
    assert apart({"b": one}, {"b": alike})["b"] > 0.05
    assert apart({"b": one}, {"b": alike}, noise=noise)["b"] <= 1e-5
    other = alike * np.float32([1.001, 1, 1, 1])
    assert apart({"b": one}, {"b": other}, noise=noise)["b"] == pytest.approx(7e-4, rel=0.1)


def test_infinities_and_nans_are_the_same_at_the_same_places() -> None:
    one = np.float32([INF, -INF, NAN, 1.0])
    assert apart({"m": one}, {"m": one.copy()}) == {"m": 0.0}
    close = np.float32([INF, -INF, NAN, 1.0 + 1e-6])
    assert 0 < apart({"m": one}, {"m": close})["m"] < 1e-5
    for other in ([-INF, -INF, NAN, 1], [INF, -INF, 1, 1], [INF, -INF, NAN, NAN]):
        assert apart({"m": one}, {"m": np.float32(other)})["m"] == INF


def test_integers_names_and_shapes() -> None:
    assert apart({"n": np.int64([2**60])}, {"n": np.int64([2**60])}) == {"n": 0.0}
    assert apart({"n": np.array(4)}, {"n": np.array(5)})["n"] == 0.25
    assert apart({"n": BIAS}, {"n": BIAS[:2]}) == {"n": INF}
    assert apart({"n": BIAS}, {"m": BIAS}) == {"n": INF, "m": INF}
    assert arrays_apart(None, {"m": BIAS}, 1e-5) == {"": INF}


def test_scores_have_a_floor_too() -> None:
    assert scores_apart({"loss": 1e-9}, {"loss": 4e-9}) == 0.0
    assert scores_apart({"loss": 0.5}, {"loss": 0.5006}) == pytest.approx(1.2e-3, rel=0.01)
    assert scores_apart({"auc": NAN, "m": INF}, {"auc": NAN, "m": INF}) == 0.0
    assert scores_apart({"auc": NAN}, {"auc": 0.5}) == INF
    assert scores_apart({"a": 1.0}, {"b": 1.0}) == INF
    assert scores_apart({"a": 1.0}, {"a": 1.01}, {"a": 0.005}) == 0.0


ATTENTION = """
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.register_buffer("mask", torch.triu(torch.full((6, 6), -1e9), 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        found = self.layer(self.embed(x[..., None]), src_mask=self.mask)
        return functional.cross_entropy(self.head(found.mean(1)), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02)
"""


@pytest.fixture
def attention(make_experiment: Any, own_modules: Any) -> Any:
    """Keys have a bias whose gradient is nothing but roundings, which Adam makes large."""
    return make_experiment(
        model={"class": f"{own_modules(ATTENTION)}:Net", "args": {}},
        train={"batch-size": 16},
        strategy={"rounds": 2},
        evaluate={"central-every": 0},
    )


@pytest.mark.seconds
def test_engines_agree_on_a_bias_of_roundings(attention: Any) -> None:
    seen: list[Any] = []
    assert verify_engines(attention, seen.append) == []
    assert not any(round.identical for round in seen)


@pytest.mark.seconds
def test_a_thousandth_of_a_bias_beside_one_of_roundings_is_named(
    attention: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flsimulation.training.lightning import LocalTrainer

    fit = LocalTrainer.fit

    def other(self: LocalTrainer, state: Any, *given: Any, **named: Any) -> Any:
        found = fit(self, state, *given, **named)
        with torch.no_grad():
            found.state["layer.norm1.bias"] = found.state["layer.norm1.bias"] * 1.001
        return found

    with monkeypatch.context() as patch:
        patch.setattr(LocalTrainer, "fit", other)
        (first, *_) = verify_engines(attention)
    assert "(layer.norm1.bias); the tolerance is 1e-05" in first
