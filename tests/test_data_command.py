"""``flsim data``: how a data set was understood, in words, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flsimulation.cli.main import main
from flsimulation.data import load_dataset
from flsimulation.experiment.spec import Data
from flsimulation.report.figures.examples import data_figure

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run ``flsim data`` in an empty folder: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["data", *arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def described(run: Command, *arguments: str) -> dict[str, Any]:
    status, output, errors = run(*arguments, "--json")
    assert (status, errors) == (0, "")
    found: dict[str, Any] = json.loads(output)
    assert Path(found["png"]).read_bytes().startswith(b"\x89PNG")
    return found


def of_own(body: str) -> str:
    """Name of a function of the user's own, in the working directory."""
    text = f"import numpy as np\ndef make():\n    {body}\n"
    Path("mine.py").write_text(text, encoding="utf-8")
    return "mine.py:make"


def folder(place: Path) -> Path:
    for number in range(10):
        image = Image.new("L", (4, 4), 255)
        image.putpixel((0, 0), 10 * number)
        path = place / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return place


def test_a_table_as_a_path(data: Command, tmp_path: Path) -> None:
    rows = [f"{10 * i},{'xy'[i % 2]},{i / 4}" for i in range(1, 11)]
    Path("prices.csv").write_text("size,town,price\n" + "\n".join(rows) + "\n")
    status, output, errors = data("prices.csv", "--set", "data.label-column=price")
    assert (status, errors) == (0, "")
    assert output.splitlines()[-1] == "data-prices.png"
    assert (tmp_path / "data-prices.png").read_bytes().startswith(b"\x89PNG")
    lines = [line.split() for line in output.splitlines()]
    assert ["task", "regression"] in lines
    assert ["examples", "8", "for", "training,", "2", "for", "the", "test"] in lines
    assert next(line for line in lines if line[:1] == ["town"])[:4] == [
        "town",
        "category",
        "0",
        "2",
    ]
    found = described(data, "prices.csv", "--set", "data.label-column=price")
    size = found["inputs"][0]["columns"][0]
    assert (size["name"], size["distinct"]) == ("size", 8)
    assert 10 <= size["min"] < size["mean"] < size["max"] <= 100
    assert found["target"]["mean"] == pytest.approx(size["mean"] / 40)


def test_the_picture_names_the_categories(tmp_path: Path) -> None:
    rows = [f"{'MF'[i % 2]},{('no', 'yes', 'ex')[i % 3]},only,{i % 2}" for i in range(30)]
    (tmp_path / "d.csv").write_text("sex,smoker,unit,label\n" + "\n".join(rows) + "\n")
    figure = data_figure(load_dataset(Data(dataset=f"file:{tmp_path / 'd.csv'}"), 0))
    ticks = [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
    assert ticks == [["0", "1"], ["F", "M"], ["ex", "no", "yes"], ["only"]]


def test_images(data: Command, tmp_path: Path) -> None:
    found = described(data, str(folder(tmp_path / "shades")))
    assert found["png"] == "data-shades.png"
    (inputs,) = found["inputs"]
    assert (inputs["kind"], inputs["shape"]) == ("images", [1, 4, 4])
    assert inputs["constant"] == 15
    assert inputs["values"]["max"] == 1
    assert inputs["values"]["min"] in (0, pytest.approx(10 / 255), pytest.approx(20 / 255))
    assert [c["name"] for c in found["classes"]] == ["a", "b"]
    assert sum(c["train"] for c in found["classes"]) == found["train"] == 8
    assert found["notes"][0] == "images: 10 of 4x4, grey"


def test_the_picture_shows_the_images(data: Command, tmp_path: Path) -> None:
    for name in ("train/red/1.png", "train/blue/1.png", "test/red/1.png"):
        path = tmp_path / "colours" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (255, 0, 0) if "red" in name else (0, 0, 255)).save(path)
    assert data("colours", "--png", "p.png")[0] == 0
    pixels = np.asarray(Image.open("p.png").convert("RGB")).reshape(-1, 3)
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (pixels == colour).all(axis=1).sum() > 1000


def test_an_experiment_file_and_masks(data: Command, tmp_path: Path) -> None:
    for number in range(4):
        for kind, value in (("images", 100), ("masks", 0)):
            image = Image.new("L", (4, 2), value)
            image.paste(255, (0, 0, 1, 2))
            (tmp_path / "cells" / kind).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / f"cells/{kind}/{number}.png")
    Path("cells.toml").write_text('name = "mine"\n[data]\ndataset = "file:cells"\n')
    found = described(data, "cells.toml")
    assert (found["png"], found["task"]) == ("data-mine.png", "segmentation")
    assert found["masks"] == [{"name": "0", "share": 0.75}, {"name": "1", "share": 0.25}]
    assert "75.00%" in data("cells.toml")[1]


def test_tokens_and_natural_clients(data: Command) -> None:
    body = (
        "x = np.arange(12).reshape(6, 2); return dict(x_train=x, y_train=[0, 1] * 3, x_test=x, "
        "y_test=[0, 1] * 3, owners=['p', 'p', 'p', 'p', 'q', 'q'])"
    )
    found = described(data, of_own(body))
    assert found["inputs"][0]["tokens"] == {
        "min": 0, "max": 11, "distinct": 12, "length": 2, "most_frequent": 0,
        "share": pytest.approx(1 / 12),
    }  # fmt: skip
    assert found["clients"] == {"number": 2, "smallest": 2, "largest": 4}
    assert "2 natural ones, 2 to 4 examples each" in data("mine.py:make")[1]


def test_several_inputs_and_several_labels(data: Command) -> None:
    body = (
        "x = {'picture': np.zeros((6, 1, 2, 2), np.float32), 'age': np.arange(6.0)}; "
        "y = np.array([[1, 1, 0], [0, 1, 0]] * 3, np.float32); "
        "return dict(x_train=x, y_train=y, x_test=x, y_test=y, classes=['p', 'q', 'r'])"
    )
    found = described(data, of_own(body))
    kinds = {inputs["name"]: inputs["kind"] for inputs in found["inputs"]}
    assert kinds == {"picture": "images", "age": "table"}
    assert found["task"] == "multilabel"
    assert [c["train"] for c in found["classes"]] == [3, 6, 0]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["none.csv"],
            "none.csv': there is no such file or folder; correct the path",
        ),
        (["mnits"], "data.dataset must be mnist, "),
        (
            ["d.csv"],
            "data.label-column 'label' is no column of d.csv: a, b; set data.label-column to one of them",
        ),
        (["d.csv", "--png", "no/where.png"], "--png no/where.png: no is not a folder"),
        (["none.toml"], "none.toml"),
    ],
)
def test_what_is_refused_is_one_line(data: Command, arguments: list[str], part: str) -> None:
    Path("d.csv").write_text("a,b\n1,2\n3,4\n")
    status, output, errors = data(*arguments)
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 1
    assert part in errors
    assert not list(Path().glob("*.png"))
