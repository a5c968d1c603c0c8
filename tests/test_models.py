"""The shipped models take their loss, last layer and scores from the task of the data set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flsimulation.data import Dataset
from flsimulation.errors import ModelError
from flsimulation.experiment.spec import Model
from flsimulation.models import LSTM, MLP, Logistic, UNet, build_model, model_arguments
from flsimulation.models.goals import Goal, goal_of, spread_of


def scores(goal: Goal, *batches: tuple[Tensor, Tensor]) -> dict[str, float]:
    """What an evaluation over these batches comes to: means by examples, and computed metrics."""
    found: dict[str, Any] = {}
    examples = 0
    for output, y in batches:
        logged: dict[str, Any] = {}
        goal.log_scores(logged.__setitem__, output, y)
        for name, value in logged.items():
            if isinstance(value, Tensor):
                value = found.get(name, 0.0) + float(value) * len(y)
            found[name] = value
        examples += len(y)
    return {
        name: value / examples if isinstance(value, float) else float(value.compute())
        for name, value in found.items()
    }


def data(x: Any, y: Any, task: str, classes: tuple[str, ...] = ()) -> Dataset:
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    return Dataset("own", x, y, x, y, classes, task=task)


def test_a_regression_predicts_in_the_unit_of_the_targets() -> None:
    y = torch.tensor([100.0, 300.0, 200.0, 400.0])  # mean 250, deviation sqrt(12,500)
    mean, deviation = spread_of(y)
    assert mean == [250.0]
    assert deviation == pytest.approx([math.sqrt(12_500)])
    goal = goal_of("regression", 1, mean, deviation)
    predicted = goal.output(torch.zeros(4, 1))
    assert predicted.tolist() == [250.0] * 4
    assert goal.loss(predicted, y).item() == pytest.approx(1.0)  # of the variance
    found = scores(goal, (predicted[:3] + 10, y[:3]), (predicted[3:] + 10, y[3:]))
    # errors 160, -40, 60, -140
    assert found["mse"] == pytest.approx((160**2 + 40**2 + 60**2 + 140**2) / 4)
    assert found["mae"] == pytest.approx(100.0)
    assert found["r2"] == pytest.approx(1 - 50_400 / 50_000, abs=1e-6)
    assert found["val_loss"] == pytest.approx(12_600 / 12_500)


def test_targets_that_are_one_column_are_not_broadcast_against_predictions() -> None:
    goal = goal_of("regression", 1)
    column = torch.tensor([[1.0], [3.0]])
    assert goal.loss(goal.output(column), column) == 0
    two = goal_of("regression", 2, [0.0, 10.0], [1.0, 2.0])
    assert two.output(torch.ones(1, 2)).tolist() == [[1.0, 12.0]]


def test_a_constant_target_does_not_divide_by_zero() -> None:
    assert spread_of(torch.full((3, 2), 7.0)) == ([7.0, 7.0], [1.0, 1.0])


def test_multilabel_is_binary_cross_entropy_and_macro_f1() -> None:
    goal = goal_of("multilabel", 2)
    logits = torch.tensor([[5.0, -5.0], [5.0, 5.0], [-5.0, 5.0]])
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = scores(goal, (logits[:1], y[:1]), (logits[1:], y[1:]))
    # each label: one right, one wrong positive, none missed: F1 = 2 / (2 + 1)
    assert found["f1"] == pytest.approx(2 / 3)
    wrong, right = math.log1p(math.exp(5)), math.log1p(math.exp(-5))
    assert found["val_loss"] == pytest.approx((2 * wrong + 4 * right) / 6)


def test_segmentation_counts_pixels_over_all_batches() -> None:
    goal = goal_of("segmentation", 2)
    y = torch.tensor([[[0, 0, 1, -100]], [[1, 1, 1, 1]]])
    predicted = torch.tensor([[[0, 1, 1, 1]], [[1, 1, 1, 0]]])
    logits = torch.stack([1.0 - predicted, predicted.float()], 1) * 20
    found = scores(goal, (logits[:1], y[:1]), (logits[1:], y[1:]))
    # class 0: 1 right of 2, one more predicted; class 1: 4 right of 5, one more predicted
    assert found["dice"] == pytest.approx((2 / 4 + 8 / 10) / 2)
    assert found["iou"] == pytest.approx((1 / 3 + 4 / 6) / 2)
    assert found["val_loss"] == pytest.approx(
        2 * 20 / 7
    )  # of seven pixels that count two are wrong


def test_masks_may_have_an_axis_of_one_channel() -> None:
    logits, y = torch.arange(120.0).sin().reshape(3, 2, 4, 5), torch.arange(60).reshape(3, 4, 5) % 2
    expected = scores(goal_of("segmentation", 2), (logits, y))
    for mask in (y[:, None], y[..., None]):
        goal = goal_of("segmentation", 2)
        assert torch.equal(goal.loss(logits, mask), goal.loss(logits, y))
        assert scores(goal, (logits, mask)) == expected


def test_a_language_models_loss_is_a_mean_over_tokens_not_over_batches() -> None:
    goal = goal_of("language", 4)
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 2] = math.log(9.0)  # probability 9/12 of token 2
    y = torch.tensor([[2, -100, -100], [0, 1, 3]])
    found = scores(goal, (logits[:1], y[:1]), (logits[1:], y[1:]))
    mean = (math.log(12 / 9) + 3 * math.log(4)) / 4
    assert found["val_loss"] == pytest.approx(mean)
    assert found["perplexity"] == pytest.approx(math.exp(mean))
    assert found["val_accuracy"] == pytest.approx((1 + 1) / 4)  # of the ties the first token
    assert goal.loss(logits[:1], y[:1]).item() == pytest.approx(math.log(12 / 9))


@pytest.mark.parametrize("task", ["segmentation", "language"])
def test_a_batch_in_which_nothing_counts_moves_nothing(task: Any) -> None:
    output = torch.zeros(2, 3, 3, requires_grad=True)
    loss = goal_of(task, 3).loss(output, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert output.grad is not None
    assert output.grad.abs().sum() == 0


def test_arguments_follow_the_task() -> None:
    x = np.zeros((4, 6), np.float32)
    assert model_arguments(Model(), data(x, np.float32([1, 2, 3, 6]), "regression")) == {
        "task": "regression",
        "inputs": 6,
        "classes": 1,
        "mean": [3.0],
        "deviation": [pytest.approx(math.sqrt(3.5))],
    }
    assert model_arguments(Model(), data(x, np.zeros((4, 5), np.float32), "multilabel")) == {
        "task": "multilabel",
        "inputs": 6,
        "classes": 5,
    }
    images = data(
        np.zeros((4, 3, 8, 8), np.float32), np.zeros((4, 8, 8), int), "segmentation", "ab"
    )
    assert model_arguments(Model(class_="unet"), images) == {"channels": 3, "classes": 2}
    tokens = data(np.arange(8).reshape(2, 4), np.arange(8).reshape(2, 4) + 3, "language")
    assert model_arguments(Model(class_="lstm"), tokens) == {"vocabulary": 11, "classes": 11}
    named = data(np.arange(8).reshape(2, 4), np.array([0, 1]), "classification", ("a", "b", "c"))
    assert model_arguments(Model(class_="lstm"), named) == {
        "vocabulary": 8,
        "task": "classification",
        "classes": 3,
    }


@pytest.mark.parametrize(
    ("name", "x", "y", "task", "words"),
    [
        ("mlp", np.zeros((2, 4), int), np.zeros((2, 4), int), "language", "use 'lstm' or a class"),
        ("unet", np.zeros((2, 4), np.float32), np.zeros(2, int), "classification", "'2nn'"),
        ("lstm", np.zeros((2, 4), np.float32), np.zeros(2, int), "classification", "needs tokens"),
        ("unet", np.zeros((2, 4), np.float32), np.zeros((2, 4), int), "segmentation", "images"),
        ("lstm", np.full((2, 4), -1), np.zeros(2, int), "classification", "from 0 on, .* has -1"),
    ],
)
def test_a_model_without_a_form_for_the_task_says_which_has_one(
    name: str, x: Any, y: Any, task: str, words: str
) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        build_model(Model(class_=name), data(x, y, task), 0)
    assert f"model.class '{name}'" in str(refused.value)


def test_models_that_cannot_read_the_inputs_are_not_named() -> None:
    images = data(np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, int), "classification")
    with pytest.raises(ModelError, match="use 'mlp', '2nn', 'logistic', 'cnn' or a class of your"):
        model_arguments(Model(class_="unet"), images)
    wide = data(np.zeros((2, 1, 8, 6), np.float32), np.zeros(2, int), "classification")
    with pytest.raises(ModelError, match="use 'mlp', '2nn', 'logistic' or a class of your own"):
        model_arguments(Model(class_="unet"), wide)


def test_outputs_have_the_form_of_the_labels() -> None:
    assert MLP(3, 1, task="regression")(torch.zeros(5, 3)).shape == (5,)
    assert Logistic(3, 2, task="regression")(torch.zeros(5, 3)).shape == (5, 2)
    assert UNet(3, 4)(torch.zeros(2, 3, 13, 18)).shape == (2, 4, 13, 18)
    assert LSTM(9, 9)(torch.zeros(2, 7, dtype=torch.int64)).shape == (2, 7, 9)
    last = LSTM(9, 3, task="classification")
    assert last(torch.zeros(2, 7, dtype=torch.int64)).shape == (2, 3)


def test_the_language_model_has_the_layers_of_the_paper() -> None:
    # McMahan et al. (2017), section 3: embedding 8, two LSTM layers of 256 units, a softmax layer
    layers = 80 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2) + (256 + 1) * 80
    assert sum(p.numel() for p in LSTM(80, 80).parameters()) == layers


def test_whole_numbers_are_inputs_of_a_perceptron_too() -> None:
    assert MLP(3, 2)(torch.ones(2, 3, dtype=torch.int64)).dtype == torch.float32


def test_the_targets_scale_is_no_part_of_what_is_sent() -> None:
    model = MLP(3, 1, task="regression", mean=[5.0], deviation=[2.0])
    assert list(model.state_dict()) == list(MLP(3, 1).state_dict())


def test_a_deviation_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"above 0 for each mean, got \[0.0\]"):
        MLP(3, 1, task="regression", mean=[5.0], deviation=[0.0])
