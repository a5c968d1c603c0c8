"""What a module's steps receive: pairs, dicts, several inputs, transformed batches."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flsimulation import run, seeds
from flsimulation.cli.main import main
from flsimulation.client.workspace import Workspace
from flsimulation.data.sources import load_dataset
from flsimulation.errors import ClientError, InputError, ModelError, RunError
from flsimulation.experiment import Experiment, load_experiment
from flsimulation.training import Terms

TOKENS = """
import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional


def texts(n=120):
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 7, (n, 5))
    mask = (np.arange(5) < rng.integers(2, 6, n)[:, None]).astype(np.int64)
    y = ((ids * mask).sum(1) > 8).astype(np.int64)
    x = {"input_ids": ids, "attention_mask": mask}
    return {
        "x_train": {name: v[:100] for name, v in x.items()},
        "y_train": y[:100],
        "x_test": {name: v[100:] for name, v in x.items()},
        "y_test": y[100:],
    }


class Bag(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(7, 4)
        self.out = torch.nn.Linear(4, 2)

    def loss(self, batch):
        if isinstance(batch, dict):
            assert sorted(batch) == ["attention_mask", "input_ids", "label"], batch.keys()
            x, y = batch, batch["label"]
        else:
            x, y = batch
            assert sorted(x) == ["attention_mask", "input_ids"], x.keys()
        mask = x["attention_mask"][..., None]
        mean = (self.words(x["input_ids"]) * mask).sum(-2) / mask.sum(-2)
        logits = self.out(mean)
        return functional.cross_entropy(logits, y), (logits.argmax(-1) == y).float().mean()

    def training_step(self, batch, batch_idx):
        loss, right = self.loss(batch)
        self.log("train_acc", right, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, right = self.loss(batch)
        self.log("val_loss", loss)
        self.log("val_acc", right)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)
"""


@pytest.fixture
def tokens(own_modules: Callable[..., Path]) -> Callable[..., Experiment]:
    """An experiment on two inputs by name."""
    own_modules(TOKENS, "tokens.py")

    def make(path: Path, *sets: str) -> Experiment:
        file = path / "tokens.toml"
        file.write_text(
            'name = "tokens"\n[data]\ndataset = "tokens.py:texts"\nclients = 3\n'
            '[model]\nclass = "tokens.py:Bag"\n[train]\nbatch-size = 8\n[strategy]\nrounds = 2\n'
        )
        return load_experiment(file, sets)

    return make


def fitted(space: Workspace, round: int = 1) -> dict[int, Any]:
    """Each client's training of a round, by partition."""
    jobs = [space.train_job(p, round) for p in range(space.experiment.data.clients)]
    found: dict[int, Any] = {}
    for wave in space.engine.fit(space.initial_state(), jobs, Terms()):
        found |= wave.results
    space.engine.close()
    return found


def evaluated(space: Workspace) -> dict[int, Any]:
    """Each client's scores of the initial model, by partition."""
    jobs = [space.evaluation_job(p, 1) for p in range(space.experiment.data.clients)]
    found: dict[int, Any] = {}
    for scored in space.engine.evaluate(space.initial_state(), jobs):
        found |= scored
    return found


def assert_same(one: dict[int, Any], other: dict[int, Any], tolerance: float = 1e-5) -> None:
    """The same training of every client."""
    assert sorted(one) == sorted(other)
    for partition, mine in one.items():
        theirs = other[partition]
        assert mine.steps == theirs.steps
        assert mine.scores == pytest.approx(theirs.scores, rel=tolerance, abs=1e-6)
        for name, value in mine.state.items():
            torch.testing.assert_close(value, theirs.state[name], rtol=tolerance, atol=tolerance)


def test_a_data_function_may_return_several_inputs(tokens: Any, tmp_path: Path) -> None:
    data = load_dataset(tokens(tmp_path).data, 0)
    assert {name: (v.dtype, tuple(v.shape)) for name, v in data.x_train.items()} == {
        "input_ids": (torch.int64, (100, 5)),
        "attention_mask": (torch.int64, (100, 5)),
    }
    assert len(data.test_indices) == 20
    again = load_dataset(tokens(tmp_path).data, 0)
    assert data.digest == again.digest
    again.x_train["attention_mask"][3, 1] += 1
    assert data.digest != load_dataset(tokens(tmp_path, "data.args.n=119").data, 0).digest


@pytest.mark.seconds
@pytest.mark.parametrize("form", ["pair", "dict"])
@pytest.mark.parametrize("processes", [1, 2])
def test_several_inputs_train_and_score_the_same_together_and_alone(
    tokens: Any, tmp_path: Path, form: str, processes: int
) -> None:
    made = [
        Workspace.load(
            tokens(tmp_path, f"data.batch={form}", f"train.engine={engine}", "train.epochs=2"),
            processes=processes,
        )
        for engine in ("stacked", "lightning")
    ]
    assert [space.engine.name for space in made] == ["stacked", "lightning"]
    assert_same(*map(fitted, made))
    one, other = map(evaluated, made)
    assert one == {p: pytest.approx(scores, rel=1e-5) for p, scores in other.items()}
    tests = [space.test_scores(space.initial_state()) for space in made]
    assert tests[0] == pytest.approx(tests[1], rel=1e-5)


@pytest.mark.seconds
def test_a_run_on_dicts_learns_what_the_same_run_on_pairs_learns(
    tokens: Any, tmp_path: Path
) -> None:
    found = [
        run(tokens(tmp_path, f"data.batch={form}"), tmp_path / form) for form in ("pair", "dict")
    ]
    assert [result.state for result in found] == ["completed", "completed"]
    assert found[0].weights_sha256 == found[1].weights_sha256
    assert found[0].loss == found[1].loss


ROWS = """
import numpy as np
import pytorch_lightning as pl
import torch

SEEN = []


def rows(n=24):
    x = np.arange(n * 2, dtype=np.float32).reshape(n, 2) / n
    return {"x_train": x, "y_train": (x[:, 0] * 3).astype(np.float32), "x_test": x[:4], "y_test": x[:4, 0]}


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return ((self.layer(x)[..., 0] - y) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", ((self.layer(x)[..., 0] - y) ** 2).mean())
        self.log("mean_input", x.mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Looking(Line):
    def training_step(self, batch, batch_idx):
        SEEN.append(("train", *batch))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        SEEN.append(("validate", *batch))
        super().validation_step(batch, batch_idx)
"""


@pytest.fixture
def lines(own_modules: Callable[..., Path], tmp_path: Path) -> Callable[..., Experiment]:
    """An experiment with a transform whose text is given, in a file beside it."""

    def make(text: str, *sets: str, model: str = "Line", data: str = "") -> Experiment:
        own_modules(ROWS, "rows.py")
        own_modules("import numpy as np\nimport random\nimport torch\n" + text, "aug.py")
        file = tmp_path / "rows.toml"
        transform = "" if data.startswith("transform") else 'transform = "aug.py:change"\n'
        file.write_text(
            f'name = "rows"\n[data]\ndataset = "rows.py:rows"\nclients = 3\nmin-examples = 2\n'
            f'{transform}{data}\n[model]\nclass = "rows.py:{model}"\n[train]\nbatch-size = 3\n'
            f"epochs = 2\n[strategy]\nrounds = 1\n"
        )
        return load_experiment(file, sets)

    return make


NOISE = "def change(x, generator):\n    return x + torch.randn(x.shape, generator=generator)\n"
GLOBAL = (
    "def change(x):\n    return x * random.random() + np.random.rand() + torch.rand(len(x), 1)\n"
)
SHIFTED = "def change(x):\n    x += 1.0\n    return x\n"
MIXED = (
    "def change(x, y, generator):\n    order = torch.randperm(len(x), generator=generator)\n"
    "    return (x + x[order]) / 2, (y + y[order]) / 2\n"
)
WIDER = "def change(x):\n    return torch.cat([x, x], 1)[:, 1:3].double().float()\n"
OBJECT = (
    "class Flip(torch.nn.Module):\n    def forward(self, *inputs):\n"
    "        return inputs[0].flip(-1)\nchange = Flip()\n"
)
EXAMPLE = "def change(x):\n    assert x.shape == (2,)\n    return x + torch.rand(1)\n"
EXAMPLE_PAIR = (
    "def change(x, y, generator):\n    s = torch.rand((), generator=generator)\n"
    "    return x * s, y * s\n"
)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("text", "per"),
    [
        *((text, "batch") for text in (NOISE, GLOBAL, SHIFTED, MIXED, WIDER, OBJECT)),
        *((text, "example") for text in (EXAMPLE, EXAMPLE_PAIR, OBJECT)),
    ],
    ids=["noise", "global", "shifted", "mixed", "wider", "object", "one", "pair", "one-object"],
)
def test_a_transform_trains_the_same_in_every_engine(lines: Any, text: str, per: str) -> None:
    sets = [f"data.transform-per={per}"]
    stacked, alone, forked = (
        Workspace.load(lines(text, *sets, f"train.engine={engine}"), processes=processes)
        for engine, processes in (("stacked", 1), ("lightning", 1), ("lightning", 2))
    )
    assert stacked.engine.name == "stacked"
    one = fitted(alone)
    assert_same(fitted(stacked), one)
    assert_same(fitted(forked), one, 0)
    plain = fitted(Workspace.load(lines(text, "data.transform=", "train.engine=lightning")))
    assert one[0].scores["loss"] != pytest.approx(plain[0].scores["loss"], rel=1e-3)


def seen(space: Workspace, round: int, partition: int) -> list[Tensor]:
    """Inputs of a client's batches, of two epochs."""
    batches = space.train_batches(partition, round)
    return [x for _ in range(2) for x, _ in batches]


@pytest.mark.seconds
def test_batches_are_those_of_the_function_and_the_seed_alone(lines: Any) -> None:
    space = Workspace.load(lines(NOISE))
    plain = Workspace.load(lines(NOISE, "data.transform="))
    found, bare = seen(space, 2, 1), seen(plain, 2, 1)
    generator = torch.Generator().manual_seed(seeds.integer(0, "transform", 2, 1))
    for own, x in zip(found, bare, strict=True):
        assert torch.equal(own, x + torch.randn(x.shape, generator=generator))
    again = seen(Workspace.load(lines(NOISE)), 2, 1)
    assert all(map(torch.equal, found, again))
    assert not torch.equal(found[0] - bare[0], seen(space, 3, 1)[0] - seen(plain, 3, 1)[0])
    assert not torch.equal(found[0] - bare[0], seen(space, 2, 0)[0] - seen(plain, 2, 0)[0])


def test_the_global_streams_are_seeded_anew_for_each_batch_round_and_client(lines: Any) -> None:
    text = "def change(x):\n    x[:] = torch.tensor([random.random(), np.random.rand()])\n    return x\n"
    space = Workspace.load(lines(text, "train.engine=lightning"))
    parts = [(round, client) for round in (1, 2) for client in (0, 1)]
    drawn = [tuple(x[0].tolist()) for part in parts for x in seen(space, *part)]
    assert len({one for one, _ in drawn}) == len({two for _, two in drawn}) == len(drawn) > 12
    assert drawn[0] == tuple(seen(space, 1, 0)[0][0].tolist())


def test_a_function_may_change_its_batch_in_place_and_the_data_set_stays(lines: Any) -> None:
    both = 'evaluation-transform = "aug.py:change"'
    space = Workspace.load(lines(SHIFTED, "train.engine=lightning", data=both))
    data = space.data.dataset
    before = data.x_train.clone(), data.x_test.clone()
    trained = torch.cat([x for x, _ in space.train_batches(0, 1)])
    mine = data.x_train[torch.from_numpy(space.data.train_indices(0))]
    assert sorted(trained.tolist()) == sorted((mine + 1).tolist())
    mean = float(data.x_train[torch.from_numpy(space.data.validation_indices(0))].mean())
    assert evaluated(space)[0]["mean_input"] == pytest.approx(mean + 1)
    tested = space.test_scores(space.initial_state())["mean_input"]
    assert tested == pytest.approx(float(data.x_test.mean()) + 1)
    assert all(map(torch.equal, before, (data.x_train, data.x_test)))


def test_a_transform_of_training_leaves_evaluations_alone(lines: Any) -> None:
    space = Workspace.load(lines(SHIFTED, "train.engine=lightning"))
    scores = space.test_scores(space.initial_state())
    assert scores["mean_input"] == pytest.approx(float(space.data.dataset.x_test.mean()))


def test_validation_in_training_takes_the_transform_of_evaluations(lines: Any) -> None:
    text = SHIFTED + "def double(x):\n    return 2 * x\n"
    more = 'evaluation-transform = "aug.py:double"'
    space = Workspace.load(lines(text, "train.validate=true", "train.epochs=1", data=more))
    held = space.data.dataset.x_train[torch.from_numpy(space.data.validation_indices(1))]
    trained = fitted(space)[1]
    assert trained.scores["mean_input"] == pytest.approx(2 * float(held.mean()))


RANDOM = "def double(x):\n    return x + torch.rand(len(x), 1)\n"


@pytest.mark.seconds
def test_many_clients_are_evaluated_together_as_alone(lines: Any) -> None:
    more = 'transform = ""\nevaluation-transform = "aug.py:double"'
    sets = ("data.clients=6", "data.validation-fraction=0.5")
    made = [
        Workspace.load(lines(RANDOM, *sets, f"train.engine={engine}", data=more))
        for engine in ("stacked", "lightning")
    ]
    one, other = map(evaluated, made)
    assert sorted(one) == sorted(other) == list(range(6))
    for partition, scores in one.items():
        assert scores == pytest.approx(other[partition], rel=1e-5)
    assert evaluated(made[0]) == one, "nothing is random in an evaluation"
    assert made[0].engine._evaluating._together._can, "they were evaluated alone"  # type: ignore[attr-defined]


@pytest.mark.seconds
@pytest.mark.parametrize("form", ["pair", "dict"])
def test_a_transform_of_several_inputs_takes_and_returns_a_dict(
    tokens: Any, own_modules: Any, tmp_path: Path, form: str
) -> None:
    text = (
        "import torch\ndef drop(x, generator):\n"
        "    keep = torch.rand(x['input_ids'].shape, generator=generator) > 0.3\n"
        "    keep[:, 0] = True\n"
        "    return {'attention_mask': x['attention_mask'] * keep, 'input_ids': x['input_ids']}\n"
    )
    path = own_modules(text, "drop.py")
    sets = (f"data.transform={path}:drop", f"data.batch={form}")
    made = [
        Workspace.load(tokens(tmp_path, *sets, f"train.engine={engine}"), processes=1)
        for engine in ("stacked", "lightning")
    ]
    assert [space.engine.name for space in made] == ["stacked", "lightning"]
    assert_same(*map(fitted, made))


@pytest.mark.seconds
def test_a_client_whose_examples_a_transform_refuses_fails_alone(lines: Any) -> None:
    text = (
        "def change(x):\n    if (x == 118 / 60).any():\n        raise ValueError('too large')\n"
        "    return x\n"
    )
    found = []
    for engine in ("stacked", "lightning"):
        space = Workspace.load(lines(text, f"train.engine={engine}", "data.args.n=60"))
        assert space.engine.name == engine
        found.append(fitted(space))
    for results in found:
        failed = [p for p, result in results.items() if isinstance(result, ClientError)]
        (owner,) = [p for p in range(3) if 59 in space.data.train_indices(p)]
        assert failed == [owner]
        assert re.fullmatch(
            r"data.transform '.*aug.py:change' raised ValueError: too large \(aug.py:6\) for inputs "
            r"of shape \(\d, 2\); correct it, or remove data.transform",
            str(results[owner]),
        )
    good = [{p: r for p, r in results.items() if p != owner} for results in found]
    assert_same(*good)


def refused(lines: Any, text: str, *sets: str, data: str = "") -> str:
    """The line with which an experiment is refused before it trains."""
    with pytest.raises(InputError) as caught:
        Workspace.load(lines(text, *sets, data=data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("other = 3\n", "has no attribute 'change'"),
        ("change = 3\n", "must be a function, got int; name a function"),
        ("class change:\n    pass\n", "must be a function, got a class; name a function"),
        ("def change(x, rng):\n    return x\n", "must take (x), (x, generator), (x, y) or (x, y, generator), got (x, rng)"),
        ("def change():\n    return 0\n", "got (); rename them"),
        ("def change(x):\n    return x.nothing\n", "raised AttributeError: 'Tensor' object has no attribute 'nothing' (aug.py:5) for inputs of shape (3, 2); correct it, or remove data.transform"),
        ("def change(x):\n    raise SystemExit(2)\n", "raised SystemExit: 2"),
        ("def change(x):\n    x + 1\n", "returned None for inputs of shape (3, 2); let it return the inputs as a tensor, or a pair of inputs and labels"),
        ("def change(x):\n    return x.numpy()\n", "returned a ndarray for"),
        ("def change(x):\n    return x, x, x\n", "returned a tuple of Tensor, Tensor, Tensor for"),
        ("def change(x):\n    return {}\n", "returned a dict with other values than tensors for"),
        ("def change(x):\n    return x[1:]\n", "returned inputs of 2 for 3 examples; let it return as many as it received"),
        ("def change(x, y):\n    return x, y[:1]\n", "returned labels of 1 for 3 examples"),
        ("def change(x):\n    return x.sum()\n", "returned inputs of one number for 3 examples"),
        ("def change(x):\n    return x / 0 * 0\n", "returned inputs with 6 NaN for 3 examples; correct it"),
        ("def change(x, y):\n    return x, torch.log(-y - 1)\n", "returned labels with 3 NaN"),
    ],
)  # fmt: skip
def test_what_is_no_transform_is_one_line_before_the_run(lines: Any, text: str, line: str) -> None:
    said = refused(lines, text)
    assert said.startswith("data.transform '"), said
    assert "aug.py:change'" in said
    assert line in said


def test_other_mistakes_of_transforms_are_one_line_too(lines: Any) -> None:
    missing = refused(lines, NOISE, data='transform = "none.py:change"')
    assert re.fullmatch(r"data.transform '.*none.py:change': there is no file .*", missing)
    both = 'transform = ""\nevaluation-transform = "aug.py:change"'
    assert "must take (x) or (x, y), as nothing is random in an evaluation, got (x, gen" in refused(
        lines, NOISE, data=both
    )
    ragged = "def change(x):\n    return x[: 1 + int(x[0] > 0)]\n"
    assert "returned shape (1,) for one example and (2,) for another; let it return one" in refused(
        lines, ragged, "data.transform-per=example"
    )


@pytest.mark.seconds
def test_shapes_that_differ_between_batches_are_one_line(lines: Any) -> None:
    text = (
        "CALLS = []\ndef change(x):\n    CALLS.append(0)\n"
        "    return x if len(CALLS) < 5 else torch.cat([x, x], 1)\n"
    )
    space = Workspace.load(lines(text, "train.engine=stacked", "data.clients=2"))
    with pytest.raises(RunError) as caught:
        fitted(space)
    assert re.fullmatch(
        r"the clients cannot be trained together after all: data.transform '.*' returned inputs of "
        r"shape \(2,\) float32 for one batch and \(4,\) float32 for another; set train.engine = "
        r"'lightning'",
        str(caught.value),
    )


def test_an_input_and_the_labels_need_two_names_in_a_dict(lines: Any) -> None:
    said = refused(lines, NOISE, "data.batch=dict", "data.label-column=image")
    assert said == (
        "data.label-column 'image' is also the name of an input, so that a batch cannot be a dict; "
        "name it otherwise, or set data.batch = 'pair'"
    )


def test_a_shipped_model_takes_pairs(lines: Any) -> None:
    said = refused(lines, NOISE, "data.batch=dict", "model.class=mlp")
    assert said == (
        "data.batch is 'dict', but model.class 'mlp' takes pairs; set data.batch = 'pair', or name a "
        "class of your own"
    )


def test_a_shipped_model_refuses_several_inputs(tokens: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="several: input_ids, attention_mask; use a class of your"):
        Workspace.load(tokens(tmp_path, "model.class=mlp"))


IMAGES = """
import numpy as np


def images(n=60):
    rng = np.random.default_rng(0)
    x = rng.random((n, 1, 8, 8), dtype=np.float32)
    y = (x[:, 0, :4].mean((1, 2)) > 0.5).astype(np.int64)
    return {"x_train": x[10:], "y_train": y[10:], "x_test": x[:10], "y_test": y[:10]}
"""


@pytest.mark.seconds
def test_the_transform_of_the_documentation_flips_and_shifts(
    own_modules: Any, tmp_path: Path
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    found = re.search(r"`augment.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    own_modules(found[1], "augment.py")
    own_modules(IMAGES, "images.py")
    file = tmp_path / "images.toml"
    file.write_text(
        'name = "images"\n[data]\ndataset = "images.py:images"\nclients = 3\n'
        'transform = "augment.py:flip_and_shift"\n[model]\nclass = "mlp"\n'
        "args = { hidden = [6, 6] }\n[train]\nbatch-size = 8\n"
    )
    made = [
        Workspace.load(load_experiment(file, [f"train.engine={engine}"]), processes=1)
        for engine in ("stacked", "lightning")
    ]
    assert_same(*map(fitted, made))
    plain = Workspace.load(load_experiment(file, ["data.transform="]), processes=1)
    mirrored, shifts = list[bool](), set[tuple[int, int]]()
    for changed, x in zip(seen(made[0], 1, 0), seen(plain, 1, 0), strict=True):
        moves = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
        whole = [  # how each image can have become what it is
            {
                (flip, move)
                for move in moves
                for flip in (False, True)
                if torch.equal(own, (before.flip(-1) if flip else before).roll(move, (-2, -1)))
            }
            for own, before in zip(changed, x, strict=True)
        ]
        assert all(len(ways) == 1 for ways in whole)
        mirrored += [flip for ((flip, _),) in whole]
        (move,) = {move for ((_, move),) in whole}
        shifts.add(move)
    assert 0.2 < np.mean(mirrored) < 0.8
    assert len(shifts) > 1


@pytest.mark.seconds
def test_a_run_with_a_mistake_in_its_transform_ends_with_one_line(
    lines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines("def change(x):\n    return None\n")
    with pytest.raises(SystemExit) as caught:
        main(["run", str(tmp_path / "rows.toml"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.count("data.transform") == 2  # the key, and the remedy
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_paths_of_transforms_are_relative_to_the_experiment_file(
    lines: Any, tmp_path: Path
) -> None:
    spec = lines(NOISE, data='transform = "aug.py:a"\nevaluation-transform = "aug.py:b"').data
    folder = tmp_path.resolve()
    assert (spec.transform, spec.evaluation_transform) == (
        f"{folder}/aug.py:a",
        f"{folder}/aug.py:b",
    )
