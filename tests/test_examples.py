"""The worked examples: their page shows the files as they are, and each command learns something."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flsimulation import load_model
from flsimulation.cli.main import main

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "experiments" / "examples"
PAGE = (ROOT / "docs" / "examples.md").read_text()

SHOWN = re.findall(r"`experiments/examples/(\S+)`:\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the experiments, in which commands run."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *options: str) -> dict[str, Any]:
    """Run an example's command; its last round."""
    out = options[1] if options else f"runs/{name}"
    with pytest.raises(SystemExit) as caught:
        main(["run", f"experiments/examples/{name}.toml", "--quiet", "--out", out])
    assert caught.value.code == 0
    last: dict[str, Any] = json.loads(Path(out, "rounds.jsonl").read_text().splitlines()[-1])
    return last


@pytest.mark.parametrize(("name", "text"), SHOWN)
def test_the_page_shows_the_files_as_they_are(name: str, text: str) -> None:
    assert (EXAMPLES / name).read_text() == text


def test_the_page_has_every_file_and_a_command_for_every_experiment() -> None:
    files = {path.name for path in EXAMPLES.glob("*.*") if path.suffix in (".py", ".toml")}
    assert {name for name, _ in SHOWN} == files
    commands = re.findall(r"^\$ flsim run experiments/examples/(\S+\.toml)", PAGE, re.MULTILINE)
    assert sorted(commands) == sorted(name for name in files if name.endswith(".toml"))


def test_the_page_shows_what_each_command_prints() -> None:
    printed = re.findall(
        r"^```text\n([\w-]+): fedavg, .*?\ncompleted: ", PAGE, re.DOTALL | re.MULTILINE
    )
    named = re.findall(r'^name = "(\S+)"', PAGE, re.MULTILINE)
    assert sorted(printed) == sorted(name for name in named)


@pytest.mark.seconds
def test_house_prices_are_numbers_in_their_own_unit(repository: Path) -> None:
    last = run("house_prices")
    assert last["central"]["r2"] > 0.85
    assert 10_000 < last["central"]["mae"] < 60_000  # of prices of about 400,000
    assert 0.5 < last["federated"]["r2"] <= 1


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("name", "score", "least"),
    [("text", "f1", 0.9), ("segmentation", "iou", 0.75), ("multilabel", "f1", 0.6)],
)
def test_an_example_learns(repository: Path, name: str, score: str, least: float) -> None:
    last = run(name)
    assert last["central"][score] > least
    assert last["federated"][score] > least - 0.1


@pytest.mark.seconds
def test_a_frozen_backbone_is_the_same_bits_at_the_end(repository: Path) -> None:
    run("backbone", "--out", "runs/backbone")
    last = run("finetuning")
    assert last["central"]["accuracy"] > 0.5
    before, after = load_model("runs/backbone"), load_model("runs/finetuning")
    for name, value in before.state_dict().items():
        if not name.startswith("layer_2"):
            assert torch.equal(after.state_dict()[f"backbone.{name}"], value), name
