"""What labels are: ``data.task``, decided by the labels or said by the experiment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flsimulation.data import Dataset, load_dataset, partition_examples
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data

Load = Callable[..., Dataset]
ROWS = 60
RNG = np.random.default_rng(0)
CLASSES = np.arange(ROWS) % 3
FLOATS = RNG.normal(size=(ROWS, 4)).astype(np.float32)
IMAGES = np.zeros((ROWS, 3, 4, 5), np.float32)
TOKENS = RNG.integers(0, 9, (ROWS, 6))
PRICES = 100_000 + 7 * RNG.permutation(40_000)[:ROWS]
MASKS = RNG.integers(0, 2, (ROWS, 4, 5))
SEVERAL = np.stack([np.arange(ROWS) % 2, np.arange(ROWS) // 2 % 2, np.ones(ROWS, int)], axis=1)


@pytest.fixture
def own(tmp_path: Path) -> Load:
    """Load labels, and inputs, as a function of the user's own returns them; 48 train."""

    def load(y: Any, x: Any = FLOATS, classes: Any = None, **keys: Any) -> Dataset:
        np.savez(tmp_path / "d.npz", x=x, y=y)
        (tmp_path / "own.py").write_text(
            "import numpy as np\n"
            "def make():\n"
            f"    d = np.load({str(tmp_path / 'd.npz')!r})\n"
            "    x, y = d['x'], d['y']\n"
            f"    return dict(x_train=x[:48], y_train=y[:48], x_test=x[48:], y_test=y[48:],"
            f" classes={classes!r})\n"
        )
        return load_dataset(Data(dataset=f"{tmp_path}/own.py:make", **keys), 0)

    return load


def refused(load: Load, *arrays: Any, **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(*arrays, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every(data: Dataset) -> torch.Tensor:
    return torch.cat([data.y_train, data.y_test])


# --- auto: classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        CLASSES,
        CLASSES.astype(np.uint8),
        CLASSES.astype(np.float32),
        CLASSES[:, None],
        np.eye(3, dtype=int)[CLASSES],
        np.eye(3, dtype=np.float32)[CLASSES],
    ],
)
def test_classes_in_every_form(own: Load, labels: np.ndarray) -> None:
    data = own(labels)
    assert (data.task, data.classes, data.y_train.dtype) == (
        "classification", ("0", "1", "2"), torch.int64,
    )  # fmt: skip
    assert every(data).tolist() == CLASSES.tolist()


def test_words_are_classes_in_sorted_or_in_the_named_order(own: Load) -> None:
    words = np.array(["mild", "None", "severe"])[CLASSES]
    data = own(words)
    assert data.classes == ("None", "mild", "severe")
    assert every(data)[:3].tolist() == [1, 0, 2]
    assert data.notes == ("labels: 3 classes None, mild, severe (data.task auto: words)",)
    assert every(own(words, classes=["severe", "mild", "None"]))[:3].tolist() == [1, 2, 0]
    assert "y_train: 'None' is none of its classes mild, severe; add it" in refused(
        own, words, classes=["mild", "severe"]
    )


def test_true_and_false_are_classes(own: Load) -> None:
    data = own(CLASSES > 0)
    assert (data.task, data.classes) == ("classification", ("0", "1"))
    assert every(data).tolist() == (CLASSES > 0).astype(int).tolist()


def test_many_classes_that_count_up_and_repeat(own: Load) -> None:
    labels = np.arange(300) % 50
    data = own(labels, np.zeros((300, 2)))
    assert (data.task, len(data.classes)) == ("classification", 50)


# --- auto: numbers ---------------------------------------------------------------------------------


def test_prices_are_numbers(own: Load) -> None:
    data = own(PRICES)
    assert (data.task, data.classes, data.labels) == ("regression", (), None)
    assert data.y_train.dtype == torch.float32
    assert every(data).tolist() == PRICES.tolist()
    assert data.notes == (
        f"labels: regression, {PRICES.min():,} to {PRICES.max():,}, mean {PRICES.mean():,.6g} "
        f"(data.task auto: 60 distinct whole numbers of 60, far apart)",
    )


def test_prices_in_thousands_repeat_and_still_are_numbers(own: Load) -> None:
    prices = 1000 * (100 + np.arange(1200) * 7919 % 300)
    assert own(prices, np.zeros((1200, 2))).task == "regression"


@pytest.mark.parametrize(
    "labels", [CLASSES + 0.5, PRICES.astype(float), FLOATS[:, :2], np.arange(60.0), MASKS * 1.0]
)
def test_floats_are_numbers_unless_they_are_few_and_whole(own: Load, labels: np.ndarray) -> None:
    data = own(labels, IMAGES)
    assert (data.task, data.y_train.dtype) == ("regression", torch.float32)
    assert every(data).numpy() == pytest.approx(labels.astype(np.float32))


def test_probabilities_are_numbers_and_no_classes(own: Load) -> None:
    rows = np.full((ROWS, 4), 0.25) + 0.05 * np.array([1, -1, 2, -2]) * (CLASSES[:, None] - 1)
    data = own(rows)
    assert (data.task, data.classes, data.y_train.shape) == ("regression", (), (48, 4))
    assert "probabilities: rows that sum to 1" in data.notes[0]
    assert "needs one class per example, or rows with one 1, but y_train has 4 numbers" in refused(
        own, rows, task="classification"
    )


# --- auto: neither is sure -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(ROWS), "60 distinct whole numbers in 60 examples (such as 0); set data.task to 'regression' or"),
        (18 + np.arange(ROWS) * 7 % 43, "43 distinct whole numbers in 60 examples"),
        (np.array([f"p{i}" for i in range(ROWS)]), "60 distinct words in 60 examples (such as p0); set data.task to 'classification' if"),
        (10 + TOKENS, "y_train with 6 integers per example are, beside inputs of shape [4]; set data.task to 'regression' or 'language'"),
    ],
)  # fmt: skip
def test_what_may_be_both_is_asked(own: Load, labels: np.ndarray, said: str) -> None:
    text = refused(own, labels)
    assert text.startswith("data.task 'auto' cannot tell what y_train")
    assert said in text


def test_the_answer_is_taken(own: Load) -> None:
    numbers, classes = (own(np.arange(ROWS), task=t) for t in ("regression", "classification"))
    assert (numbers.task, numbers.y_train.dtype, numbers.classes) == (
        "regression", torch.float32, (),
    )  # fmt: skip
    assert (classes.task, classes.y_train.dtype, len(classes.classes)) == (
        "classification", torch.int64, 60,
    )  # fmt: skip


# --- auto: several labels per example --------------------------------------------------------------


@pytest.mark.parametrize("kind", [int, np.float32, bool])
def test_rows_of_0_and_1_are_several_classes(own: Load, kind: Any) -> None:
    data = own(SEVERAL.astype(kind), classes=["a", "b", "c"])
    assert (data.task, data.classes) == ("multilabel", ("a", "b", "c"))
    assert data.y_train.dtype == torch.float32
    assert every(data).tolist() == SEVERAL.tolist()


def test_rows_with_one_1_are_several_classes_if_the_experiment_says_so(own: Load) -> None:
    data = own(np.eye(3)[CLASSES], task="multilabel")
    assert every(data).tolist() == np.eye(3)[CLASSES].tolist()


def test_a_class_per_pixel(own: Load) -> None:
    data = own(MASKS, IMAGES)
    assert (data.task, data.y_train.shape, data.y_train.dtype) == (
        "segmentation", (48, 4, 5), torch.int64,
    )  # fmt: skip


def test_a_token_per_position_and_what_is_ignored(own: Load) -> None:
    following = np.where(TOKENS == 0, -100, TOKENS)
    data = own(following, TOKENS)
    assert (data.task, data.y_train.dtype, data.x_train.dtype) == (
        "language", torch.int64, torch.int64,
    )  # fmt: skip
    assert every(data).tolist() == following.tolist()


# --- labels that are none --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "keys", "said"),
    [
        (CLASSES - 1, {}, "labels must be in 0..1, its classes, got -1"),
        (np.where(CLASSES > 0, CLASSES, -100), {}, "labels must be in 0..2, its classes, got -100"),
        (CLASSES + 0.5, {"classes": ["a", "b", "c"]}, "'classification' needs words or whole numbers, but"),
        (CLASSES, {"classes": ["a", "b"]}, "labels must be in 0..1, its classes, got 2"),
        (np.where(MASKS > 0, MASKS, -1), {"x": IMAGES}, "-1 is no class; use -100 for what is to be"),
        (MASKS + 1, {"x": IMAGES, "classes": ["a", "b"]}, "in 0..1, its classes, or -100 to be ignored, got 2"),
        (np.where(CLASSES > 0, CLASSES, np.nan), {}, "16 labels are missing"),
        (np.where(CLASSES > 0, CLASSES, np.inf), {}, "y_train: inf at index 0; labels must be finite"),
        (np.full((ROWS, 4, 5), np.inf), {"x": IMAGES}, "y_train: inf at index [0, 0, 0]; labels must be finite"),
        (1e300 * (CLASSES + 0.5), {}, "'classification' numbers its classes from 0 on, but y_train has 5e+299"),
        (1e300 * FLOATS[:, 0].astype(float), {}, "y_train: inf at index 0 as float32; labels must be finite"),
        (SEVERAL, {"classes": ["a", "b"]}, "rows of 3 but 2 classes; name 3"),
        (CLASSES + 0.5, {"task": "classification"}, "data.task 'classification' needs words or whole numbers, but y_train has 0.5; set data.task = 'regression'"),
        (SEVERAL, {"task": "classification"}, "or rows with one 1, but y_train has 3 numbers per example"),
        (np.array(["a", "b", "c"])[CLASSES], {"task": "regression"}, "data.task 'regression' needs numbers, but y_train has the word 'a'"),
        (CLASSES, {"task": "multilabel"}, "data.task 'multilabel' needs rows of 0 and 1, one number per class, but y_train has one number"),
        (CLASSES, {"task": "segmentation"}, "data.task 'segmentation' needs one class per pixel"),
        (CLASSES, {"task": "language"}, "data.task 'language' needs one token per position"),
    ],
)  # fmt: skip
def test_refusals(own: Load, labels: np.ndarray, keys: dict[str, Any], said: str) -> None:
    assert said in refused(own, labels, **keys)


def test_a_data_set_that_names_its_task(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from flsimulation.data import Dataset\n"
        "def make(task, kind='torch'):\n"
        "    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 2, 1])\n"
        "    y = y if kind == 'torch' else y.numpy()\n"
        "    return Dataset('mine', x, y, x, y, task=task)\n"
    )

    def load(**args: Any) -> Dataset:
        return load_dataset(Data(dataset=f"{tmp_path}/own.py:make", args=args), 0)

    assert load(task="regression").y_train.tolist() == [0.0, 1.0, 2.0, 1.0]
    assert load(task="auto").task == "classification"
    assert "has the task 'ranking'; use one of data.task" in refused(load, task="ranking")
    assert "y_train of its Dataset must be a tensor, got ndarray" in refused(
        load, task="auto", kind="numpy"
    )


def test_tensors_that_numpy_does_not_take_are_converted(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from flsimulation.data import Dataset\n"
        "def make():\n"
        "    x = dict(a=torch.ones(4, 2).bfloat16(), b=torch.ones(4, 2, requires_grad=True))\n"
        "    y = torch.tensor([0, 1, 0, 1])\n"
        "    return Dataset('mine', x, y, x, y)\n"
    )
    data = load_dataset(Data(dataset=f"{tmp_path}/own.py:make"), 0)
    assert isinstance(data.x_train, dict)
    assert {x.dtype for x in data.x_train.values()} == {torch.float32}
    assert not data.x_train["b"].requires_grad
    assert len(data.digest) == 64


@pytest.mark.parametrize("function", ["arrays", "tensors"])
def test_several_inputs_are_of_the_task_of_those_with_a_label_per_position(
    tmp_path: Path, function: str
) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "import torch\n"
        "from flsimulation.data import Dataset\n"
        "def arrays():\n"
        "    ids = np.arange(24).reshape(6, 4) % 5\n"
        "    x = dict(mask=(ids > 0).astype(np.float32), ids=ids)\n"
        "    return dict(x_train=x, y_train=ids, x_test=x, y_test=ids)\n"
        "def tensors():\n"
        "    own = arrays()\n"
        "    x = {name: torch.as_tensor(part) for name, part in own['x_train'].items()}\n"
        "    return Dataset('mine', x, torch.as_tensor(own['y_train']), x, x['ids'])\n"
    )
    data = load_dataset(Data(dataset=f"{tmp_path}/own.py:{function}"), 0)
    assert data.task == "language"
    assert isinstance(data.x_train, dict)
    assert [*data.x_train] == ["mask", "ids"]


# --- partitions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["dirichlet", "shards", "pathological"])
def test_partitions_by_label_need_classes(own: Load, scheme: str) -> None:
    data = own(PRICES)
    with pytest.raises(DataError) as caught:
        partition_examples(data, Data(partition=scheme, min_examples=2), 0)
    text = str(caught.value)
    assert f"data.partition {scheme!r} needs class labels" in text
    assert "(data.task 'regression'); use 'iid'" in text
    assert text.endswith("or set data.task = 'classification' if the targets are classes")


def test_numbers_with_fractions_are_not_proposed_as_classes(own: Load) -> None:
    with pytest.raises(DataError) as caught:
        partition_examples(own(FLOATS[:, 0]), Data(partition="shards", min_examples=2), 0)
    assert str(caught.value).endswith("'exponential' or 'natural'")
