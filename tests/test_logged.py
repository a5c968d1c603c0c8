"""What is logged without a Trainer: taken in, reduced by hand-made sums, named as Lightning does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flsimulation.training.logged import CannotTake, Log, Logged, reduced

VALUES = np.array([[1.0], [2.0], [6.0]])
SIZES = np.array([4, 4, 2])


@pytest.mark.parametrize(
    ("reduction", "value"),
    [("mean", 2.4), ("avg", 2.4), ("sum", 9.0), ("min", 1.0), ("max", 6.0)],
)
def test_an_epochs_value_is_reduced_over_its_batches(reduction: str, value: float) -> None:
    how = [Logged("a", on_step=False, on_epoch=True, reduction=reduction, batch_size=None)]
    assert reduced(how, VALUES, SIZES) == {"a": pytest.approx(value)}


def test_a_constant_size_weighs_all_batches_alike() -> None:
    how = [Logged("a", on_step=False, on_epoch=True, reduction="mean", batch_size=7)]
    assert reduced(how, VALUES, SIZES) == {"a": 3.0}


def test_sizes_may_be_each_values_own() -> None:
    how = [Logged(n, False, True, "mean", None) for n in "ab"]
    sizes = np.array([[1, 4], [1, 4], [1, 2]])
    assert reduced(how, VALUES[:, [0, 0]], sizes) == {"a": 3.0, "b": pytest.approx(2.4)}


def test_names_come_in_lightnings_order() -> None:
    how = [
        Logged("late", False, True, "mean", None),
        Logged("both", True, True, "mean", None),
        Logged("last", True, False, "mean", None),
    ]
    values = VALUES[:, [0, 0, 0]]
    assert list(reduced(how, values, SIZES).items()) == [
        ("both", pytest.approx(2.4)),
        ("both_step", 6.0),
        ("last", 6.0),
        ("late", pytest.approx(2.4)),
        ("both_epoch", pytest.approx(2.4)),
    ]
    found = reduced(how, values, SIZES, training=False)
    assert list(found) == ["late", "both", "both_epoch"]


def test_training_logs_steps_and_evaluation_epochs_unless_told() -> None:
    for training in (True, False):
        log = Log(training=training)
        log.log("a", 1.0)
        log.log("b", torch.tensor(2), on_step=True, on_epoch=True, prog_bar=True)
        assert [(h.on_step, h.on_epoch) for h in log.how] == [
            (training, not training),
            (True, True),
        ]
        assert [value.dtype for value in log.values] == [torch.float32] * 2
        assert [float(value) for value in log.values] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "how"),
    [
        (torch.ones(2), {}),
        ("text", {}),
        ({"a": 1.0}, {}),
        (1.0, {"on_step": False, "on_epoch": False}),
        (1.0, {"reduce_fx": "median"}),
        (1.0, {"reduce_fx": torch.std}),
        (1.0, {"metric_attribute": "m"}),
        (1.0, {"unheard_of": 1}),
    ],
)
def test_what_only_a_trainer_understands_is_not_taken(value: Any, how: dict[str, Any]) -> None:
    with pytest.raises(CannotTake, match="logs 'a'"):
        Log(training=True).log("a", value, **how)


def test_a_name_twice_in_a_step_is_not_taken() -> None:
    log = Log(training=True)
    log.log("a", 1.0)
    with pytest.raises(CannotTake, match="logs 'a' twice in a step"):
        log.log_dict({"a": 1.0})
