"""Which of a module's scores are the loss and the accuracy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flsimulation.errors import ClientError
from flsimulation.training.scores import RETURNED, returned_loss, scores


@pytest.mark.parametrize(
    "name",
    [
        *(
            "loss",
            "val_loss",
            "valLoss",
            "validLoss",
            "val/loss",
            "loss_val",
            "ValLoss",
            "VAL_LOSS",
        ),
        *("loss/valid", "BCELoss", "val_mse_loss", "testLoss2"),
    ],
)
def test_a_name_with_the_word_loss_is_the_loss(name: str) -> None:
    assert list(scores({"rmse": 2.0, name: 1.0}).items()) == [("loss", 1.0), ("rmse", 2.0)]


@pytest.mark.parametrize("name", ["val_mse", "rmse", "glossary", "lossless", "closs", "1"])
def test_another_name_is_kept(name: str) -> None:
    assert scores({name: 1.0}) == {name: 1.0}


@pytest.mark.parametrize(
    ("names", "loss"),
    [
        (["val_aux_loss", "val_loss"], "val_loss"),
        (["aux_loss", "val_loss"], "val_loss"),
        (["val_aux_loss", "aux_loss"], "aux_loss"),
        (["kl_loss", "mse_loss"], "kl_loss"),
        (["val_loss", "val_loss_epoch"], "val_loss"),
        (["loss_a", "loss"], "loss"),
    ],
)
def test_of_several_the_plainest_is_the_loss(names: list[str], loss: str) -> None:
    found = scores({name: float(place) for place, name in enumerate(names)})
    assert found == {
        ("loss" if name == loss else name): float(place) for place, name in enumerate(names)
    }


def test_accuracy_has_two_words_and_follows_the_same_rules() -> None:
    logged = {"val_top5_acc": 0.9, "valAccuracy": 0.5, "val_loss": 1.0}
    expected = [("loss", 1.0), ("accuracy", 0.5), ("val_top5_acc", 0.9)]
    assert list(scores(logged).items()) == expected
    assert scores({"MulticlassAccuracy": 0.25}) == {"accuracy": 0.25}


def test_the_loss_that_a_step_returned_counts_if_none_is_logged() -> None:
    assert scores({"rmse": 2.0, RETURNED: 4.0}) == {"loss": 4.0, "rmse": 2.0}
    assert scores({"val_loss": 2.0, RETURNED: 4.0}) == {"loss": 2.0}
    assert scores({"val_loss": 2.0}, {"loss": 3.0}) == {"loss": 3.0}


@pytest.mark.parametrize(
    ("output", "loss"),
    [
        (torch.tensor(2.0), 2.0),
        (torch.tensor([2.0]), 2.0),
        ({"loss": torch.tensor(2.0), "preds": torch.ones(3)}, 2.0),
        ({"val_loss": torch.tensor(2.0)}, 2.0),
        (torch.ones(3), None),
        (torch.tensor(2), None),
        ({"preds": torch.tensor(2.0)}, None),
        ((torch.tensor(2.0),), None),
        (None, None),
    ],
)
def test_what_a_step_returns_is_its_loss_if_it_can_be(output: Any, loss: float | None) -> None:
    found = returned_loss(output)
    assert (None if found is None else float(found)) == loss


def test_several_numbers_under_one_name_are_named() -> None:
    with pytest.raises(ClientError, match="logs 3 values as 'each'; log one number for each name"):
        scores({"each": torch.ones(3)})
