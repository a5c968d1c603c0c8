"""Warnings of libraries and of the user's code while a run is in progress."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from flsimulation.cli.main import main
from flsimulation.host.warned import TEST_SET, Warned, collected, of_client, pass_on
from flsimulation.messages.batch import Reply, joined

pytestmark = pytest.mark.filterwarnings("default")

OWN = """
import logging, warnings
import pytorch_lightning as pl, torch
from torch.nn import functional

log = logging.getLogger(__name__)
log.propagate = False  # pytest's own handler is at the root

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))

    def training_step(self, batch, number):
        warnings.warn(f"strange batch {number}")
        log.warning("batch %d is strange", number)
        torch.nn.Dropout2d(0.0)(torch.zeros(2, 2))
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        warnings.warn("evaluated")
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""


def test_each_text_is_kept_once_with_its_first_client() -> None:
    with collected() as found:
        for client in (3, 4):
            with of_client(client):
                warnings.warn(f"loss of {client / 3} is\n  high", stacklevel=1)
        with of_client(TEST_SET):
            warnings.warn("high", RuntimeWarning, stacklevel=1)
        logger = logging.getLogger("some.library")
        logger.propagate = False  # pytest's own handler is at the root
        logger.warning("slow")
    assert [re.sub(r":\d+:", ":1:", line) for line in found.lines] == [
        f"client 3: UserWarning in {Path(__file__).name}:1: loss of 1.0 is high",
        f"test set: RuntimeWarning in {Path(__file__).name}:1: high",
        "Warning from the logger some.library: slow",
    ]


def test_a_library_is_named_also_where_it_blames_its_caller() -> None:
    import torch

    with collected() as found:
        torch.nn.functional.mse_loss(torch.zeros(2, 1), torch.zeros(2))
    assert len(found.lines) == 1
    assert found.lines[0].startswith("UserWarning from torch: Using a target size (torch.Size([2])")


def test_many_different_texts_are_counted() -> None:
    with collected() as found:
        for letter in "abcdefghijklmnopqrstuvw":
            warnings.warn(letter, stacklevel=1)
    assert len(found.lines) == 21
    assert found.lines[-1] == "and 3 more"


def test_afterwards_warnings_are_pythons_own_again() -> None:
    before = warnings.showwarning, logging.lastResort
    with pytest.raises(KeyError), collected():
        raise KeyError
    assert (warnings.showwarning, logging.lastResort) == before


def test_what_the_filters_ignore_or_raise_is_left_to_them() -> None:
    with collected() as found, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.warn("ignored", stacklevel=1)
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="raised"):
            warnings.warn("raised", stacklevel=1)
    assert found.lines == []


def test_another_processs_warnings_are_printed_once_where_none_are_collected() -> None:
    received = [Warned(5, "UserWarning from x: unheard-of"), Warned(6, "UserWarning from x: unheard-of")]  # fmt: skip
    with pytest.warns(UserWarning, match="unheard-of") as printed:
        pass_on([*received, *received])
    assert [str(p.message) for p in printed] == ["client 5: UserWarning from x: unheard-of"]
    with collected() as found:
        pass_on(received)
    assert found.lines == ["client 5: UserWarning from x: unheard-of"]


def test_joined_replies_have_the_warnings_of_all() -> None:
    first, second = Warned(1, "a"), Warned(2, "b")
    assert joined([Reply((), warned=[first]), Reply((), warned=[second])]).warned == (first, second)


@pytest.mark.seconds
@pytest.mark.parametrize("option", [None, "--json", "--quiet"])
def test_a_run_prints_them_below_its_table(
    capfd: pytest.CaptureFixture[str],
    experiment_file: Any,
    own_modules: Any,
    tmp_path: Path,
    option: str | None,
) -> None:
    file = experiment_file(f'[model]\nclass = "{own_modules(OWN)}:Net"\n[strategy]\nrounds = 1\n')
    with pytest.raises(SystemExit) as ended:
        main(["run", str(file), "--out", str(tmp_path / "r"), *([option] if option else [])])
    output, errors = capfd.readouterr()
    assert not ended.value.code
    lines = errors.splitlines() if option == "--json" else output.splitlines()
    if option == "--quiet":
        assert (output, errors) == ("", "")
        return
    if option == "--json":
        assert json.loads(output)["state"] == "completed"
    else:
        assert errors == ""
        summary = next(n for n, line in enumerate(lines) if line.startswith("completed: "))
        assert all("arning" not in line for line in lines[:summary])
    found = [line for line in lines if "arning" in line]
    kinds = ["UserWarning in own.py:15: strange batch", "Warning from the logger own_", "UserWarning from torch: dropout2d: Received a 2-D input", "UserWarning in own.py:21: evaluated"]  # fmt: skip
    assert len(found) == len(kinds)
    for line, kind in zip(found, kinds, strict=True):
        assert kind in line
        assert line.startswith(("client ", "test set: "))
