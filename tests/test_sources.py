from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flsimulation.data import load_dataset
from flsimulation.data.dataset import Dataset
from flsimulation.data.idx import read_idx
from flsimulation.data.shipped import FASHION_VARIABLE, load_mnist
from flsimulation.data.sources import read_ahead
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


def load(dataset: str | Path, seed: int = 0, **keys: Any) -> Dataset:
    return load_dataset(Data(dataset=str(dataset), **keys), seed)


def refused(dataset: str | Path, **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(dataset, **keys)
    text = str(caught.value)
    assert "\n" not in text
    return text


def idx(code: int, array: np.ndarray) -> bytes:
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, code, array.ndim]) + shape + array.tobytes()


# --- IDX -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "stored", "numbers"),
    [
        (0x08, "u1", [0, 255]),
        (0x09, "i1", [-128, 127]),
        (0x0B, ">i2", [-2, 300]),
        (0x0C, ">i4", [-2, 70_000]),
        (0x0D, ">f4", [0.5, -1.25]),
        (0x0E, ">f8", [0.1, 1e300]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_types(
    tmp_path: Path, code: int, stored: str, numbers: list[float], zipped: bool
) -> None:
    content = idx(code, np.array([numbers], stored))
    (tmp_path / "f").write_bytes(gzip.compress(content) if zipped else content)
    array = read_idx(tmp_path / "f")
    assert array.tolist() == [numbers]
    assert array.dtype == np.dtype(stored).newbyteorder("=")
    assert array.dtype.isnative


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an IDX file: it begins with nothing"),
        (b"PK\3\4rest", "not an IDX file: it begins with 50 4b 03 04"),
        (b"\0\0\x07\1\0\0\0\1a", "not an IDX file"),
        (b"\0\0\x08\3\0\0", "ends in its header"),
        (b"\0\0\x08\1\0\0\0\3ab", "of shape (3,) has 11 bytes, got 10"),
        (b"\0\0\x08\1\0\0\0\1ab", "of shape (1,) has 9 bytes, got 10"),
        (gzip.compress(bytes(99), mtime=0)[:-9], "a damaged gzip file"),
        (b"\x1f\x8bnonsense", "a damaged gzip file"),
    ],
)
def test_idx_refusals(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def test_idx_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: cannot be read: No such file"):
        read_idx(tmp_path / "none")


# --- MNIST ---------------------------------------------------------------------------------------


def test_mnist() -> None:
    data = load("mnist")
    assert (data.x_train.shape, data.x_test.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert (data.x_train.dtype, data.y_train.dtype) == (torch.float32, torch.int64)
    assert (data.x_train.min().item(), data.x_train.max().item()) == (0.0, 1.0)
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.y_test[:3].tolist() == [7, 2, 1]
    assert torch.bincount(data.y_train).tolist()[:3] == [5923, 6742, 5958]
    assert data.x_train.mean().item() == pytest.approx(0.1307, abs=5e-5)  # the well-known mean
    assert data.x_train.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert data.classes == tuple("0123456789")
    assert data.owners is None
    assert data.digest == "9a604318233dd69e22bdb3fca097b85f52fe48128f52b0b7791557f7030d1b9c"


@pytest.fixture
def mnist_copy(tmp_path: Path) -> Path:
    with resources.as_file(resources.files("flsimulation.data").joinpath("mnist")) as folder:
        return Path(shutil.copytree(folder, tmp_path / "mnist"))


def test_mnist_damaged(mnist_copy: Path) -> None:
    file = mnist_copy / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_mnist(Data(), 0, mnist_copy)
    assert str(caught.value).startswith(
        "data.dataset 'mnist': t10k-labels-idx1-ubyte.gz is damaged: its SHA-256 must be b91679a0"
    )
    assert str(caught.value).endswith("; reinstall flsimulation")


def test_mnist_with_a_file_missing(mnist_copy: Path) -> None:
    (mnist_copy / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz cannot be read.*reinstall"):
        load_mnist(Data(), 0, mnist_copy)


# --- folders of IDX files, Fashion-MNIST ---------------------------------------------------------


def idx_folder(folder: Path, dot: str = "-", end: str = "") -> Path:
    folder.mkdir()
    pack = gzip.compress if end else bytes
    for part, n in (("train", 3), ("t10k", 2)):
        images = np.full((n, 2, 2), 51, np.uint8)
        images[0, 0, 1] = 255
        labels = np.arange(n, dtype=np.uint8)
        (folder / f"{part}-images{dot}idx3-ubyte{end}").write_bytes(pack(idx(8, images)))
        (folder / f"{part}-labels{dot}idx1-ubyte{end}").write_bytes(pack(idx(8, labels)))
    return folder


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_folder(tmp_path: Path, dot: str, end: str) -> None:
    data = load(f"file:{idx_folder(tmp_path / 'd', dot, end)}")
    assert data.x_train.shape == (3, 1, 2, 2)
    assert data.x_test[0].tolist() == [[[pytest.approx(0.2), 1.0], [pytest.approx(0.2)] * 2]]
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 1, 2], [0, 1])
    assert data.classes == ("0", "1", "2")


def test_idx_folder_with_a_file_missing(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "d")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert refused(f"file:{folder}").endswith(
        f"{folder} has no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz; add the file"
    )


def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLSIM_FASHION_MNIST", str(idx_folder(tmp_path / "d", end=".gz")))
    data = load("fashion-mnist")
    assert data.x_train.shape == (3, 1, 2, 2)
    assert len(data.classes) == 10
    assert data.classes[0] == "T-shirt/top"
    assert data.classes[9] == "Ankle boot"


def test_a_data_set_that_is_read_ahead_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spec = idx_folder(tmp_path / "data"), Data(dataset="fashion-mnist")
    monkeypatch.setenv(FASHION_VARIABLE, str(folder))
    expected, before = load_dataset(spec, 0), set(threading.enumerate())
    with read_ahead(spec, 0):
        other = load_dataset(spec, 1)  # of another seed: it is read now
        for thread in set(threading.enumerate()) - before:
            thread.join()
        shutil.rmtree(folder)
        ahead = load_dataset(spec, 0)
        with pytest.raises(DataError, match="there is no copy in"):
            load_dataset(spec, 0)
    assert other is not ahead
    assert ahead.digest == expected.digest == other.digest


def test_a_data_set_that_is_read_ahead_and_not_taken_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Data(dataset="fashion-mnist")
    monkeypatch.setenv(FASHION_VARIABLE, str(idx_folder(tmp_path / "data")))
    with read_ahead(spec, 0):
        pass
    monkeypatch.setenv(FASHION_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(DataError, match="there is no copy in"):
        load_dataset(spec, 0)


def test_what_fails_when_it_is_read_ahead_fails_where_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Data(dataset="fashion-mnist")
    monkeypatch.setenv(FASHION_VARIABLE, str(tmp_path / "absent"))
    with read_ahead(spec, 0), pytest.raises(DataError) as caught:
        load_dataset(spec, 0)
    with pytest.raises(DataError) as expected:
        load_dataset(spec, 0)
    assert str(caught.value) == str(expected.value)


def test_fashion_mnist_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLSIM_FASHION_MNIST", str(tmp_path / "none"))
    text = refused("fashion-mnist")
    assert text.startswith(f"data.dataset 'fashion-mnist': there is no copy in {tmp_path}/none; ")
    for remedy in ("dataset-fashion-mnist", "FLSIM_FASHION_MNIST", "file:PATH", "hf:zalando-data"):
        assert remedy in text


# --- folders of images -----------------------------------------------------------------------------


def image(path: Path, level: int, mode: str = "L", size: tuple[int, int] = (3, 2)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode in ("L", "I;16") else (level, 0, 255)).save(path)


def test_images_in_train_and_test(tmp_path: Path) -> None:
    image(tmp_path / "train/dog/1.png", 51)
    image(tmp_path / "train/cat/1.PNG", 102)
    image(tmp_path / "test/dog/1.png", 255)
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    data = load(f"file:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert data.x_train.shape == (2, 1, 2, 3)  # height 2, width 3
    assert data.x_train[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.2])
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 1], [1])


def test_images_without_a_test_set_are_split_by_seed(tmp_path: Path) -> None:
    for number in range(10):
        image(tmp_path / f"c{number % 2}/{number}.png", number)
    one, again, other = (load(f"file:{tmp_path}", seed) for seed in (1, 1, 2))
    assert (len(one.y_train), len(one.y_test)) == (8, 2)
    every = torch.cat([one.x_train, one.x_test])[:, 0, 0, 0] * 255
    assert sorted(every.round().int().tolist()) == list(range(10))
    assert one.digest == again.digest != other.digest
    assert len(load(f"file:{tmp_path}", test_fraction=0.5).y_test) == 5


def test_colour_images_put_the_channels_first(tmp_path: Path) -> None:
    image(tmp_path / "train/a/1.png", 51, "RGB")
    image(tmp_path / "train/b/1.png", 51)  # a grey one becomes colour too
    image(tmp_path / "test/a/1.png", 51, "RGB")
    data = load(f"file:{tmp_path}")
    assert data.x_train.shape == (2, 3, 2, 3)
    assert data.x_train[0, :, 0, 0].tolist() == pytest.approx([0.2, 0, 1])
    assert data.x_train[1, :, 0, 0].tolist() == pytest.approx([0.2] * 3)


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    text = refused(f"file:{tmp_path}")
    assert text.startswith(f"data.dataset 'file:{tmp_path}': there is no data set in the folder; ")
    for form in ("IDX", "train/CLASS/*.png", "train.csv"):
        assert form in text


# --- CSV -------------------------------------------------------------------------------------------


def csv(path: Path, text: str) -> str:
    path.write_text(text.replace(" ", "\n"), encoding="utf-8")
    return f"file:{path}"


def test_csv_with_text_labels_and_owners(tmp_path: Path) -> None:
    source = csv(tmp_path / "d.csv", "a,label,client,b 1,x,u,0.5 2,z,u,1 3,y,v,1.5 4,x,w,2 5,x,w,0")
    data = load(source, test_fraction=0.2)
    assert data.x_train.dtype == torch.float32
    assert data.classes == ("x", "y", "z")
    rows = {
        1.0: (0.5, 0, "u"),
        2.0: (1, 2, "u"),
        3.0: (1.5, 1, "v"),
        4.0: (2, 0, "w"),
        5.0: (0, 0, "w"),
    }
    assert data.owners is not None
    for (a, b), label, owner in zip(
        data.x_train.tolist(), data.y_train.tolist(), data.owners, strict=True
    ):
        assert rows.pop(a) == (b, label, owner)
    assert list(rows) == data.x_test[:, 0].tolist()


def test_csv_with_integer_labels(tmp_path: Path) -> None:
    data = load(csv(tmp_path / "d.csv", "y,a 7,0 -1,1 7,2 3,3"), label_column="y")
    assert data.classes == ("-1", "3", "7")
    assert data.y_train.dtype == torch.int64
    found = dict(zip(data.x_train[:, 0].tolist(), data.y_train.tolist(), strict=True))
    assert len(found) == 3
    assert found.items() <= {0: 2, 1: 0, 2: 2, 3: 1}.items()


def test_csv_with_targets(tmp_path: Path) -> None:
    data = load(csv(tmp_path / "d.csv", "a,label 1,1.5 2,3.0 3,4.5"))
    assert data.classes == ()
    assert data.labels is None
    assert data.y_train.dtype == torch.float32
    assert (data.y_train * 2 / 3).tolist() == data.x_train[:, 0].tolist()


def test_csv_of_two_files(tmp_path: Path) -> None:
    csv(tmp_path / "train.csv", "a,b,label 1,2,no 3,4,yes")
    csv(tmp_path / "test.csv", "label,b,a yes,6,5")
    data = load(f"file:{tmp_path}")
    assert data.x_test.tolist() == [[5, 6]]
    assert data.y_test.tolist() == [1]
    assert len(data.y_train) == 2
    (tmp_path / "test.csv").unlink()
    assert len(load(f"file:{tmp_path}").y_train) == 1


@pytest.mark.parametrize(
    ("text", "keys", "said"),
    [
        ("a,Label 1,2", {}, "data.label-column 'label' is no column of d.csv: a, Label; did you mean 'Label'?"),
        ("a,b 1,2", {"label_column": "zz"}, "data.label-column 'zz' is no column of d.csv: a, b"),
        ("a,label ,1 3,2", {}, "d.csv has 1 missing cell in column 'a', the first in row 1; fill them, or set data.fill"),
        ("a,label 1, 3,2", {}, "d.csv has 1 empty cell in 'label', the first in row 1; fill them"),
        ("label 1", {}, "d.csv has no column beside data.label-column; add the inputs"),
        ("", {}, "d.csv cannot be read as CSV: No columns to parse"),
        ("a,label 1,2 1,2,3", {}, "d.csv cannot be read as CSV: Error tokenizing data"),
        ("a,label 1,2", {}, "data.test-fraction 0.2 leaves no training example of the 1 in file:"),
        ("a,label 1,2 3,4", {"test_fraction": 1.0}, "data.test-fraction 1.0 leaves no training"),
    ],
)  # fmt: skip
def test_csv_refusals(tmp_path: Path, text: str, keys: dict[str, Any], said: str) -> None:
    assert said in refused(csv(tmp_path / "d.csv", text), **keys)


def test_csv_refusals_of_the_test_file(tmp_path: Path) -> None:
    csv(tmp_path / "train.csv", "a,b,label 1,2,0 3,4,1")
    csv(tmp_path / "test.csv", "a,label 1,0")
    assert "test.csv lacks the training set's column 'b'; add it" in refused(f"file:{tmp_path}")
    csv(tmp_path / "test.csv", "a,b 1,0")
    assert "data.label-column 'label' is no column of test.csv" in refused(f"file:{tmp_path}")


# --- NPZ -------------------------------------------------------------------------------------------


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return f"file:{path}"


def test_npz_as_keras_has_it(tmp_path: Path) -> None:
    source = npz(
        tmp_path / "d.npz",
        x_train=np.full((3, 2, 5, 3), 51, np.uint8),
        y_train=np.array([[2], [0], [1]]),  # [n, 1], as in Keras' CIFAR-10
        x_test=np.zeros((1, 2, 5, 3), np.uint8),
        y_test=np.array([[2]]),
        owners_train=np.array([5, 5, 6]),
    )
    data = load(source)
    assert data.x_train.shape == (3, 3, 2, 5)
    assert data.x_train.unique().tolist() == pytest.approx([0.2])
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([2, 0, 1], [2])
    assert data.owners is not None
    assert data.owners.tolist() == [5, 5, 6]


def test_npz_of_x_and_y(tmp_path: Path) -> None:
    x = np.arange(10.0).reshape(5, 2)
    data = load(npz(tmp_path / "d.npz", x=x, y=np.arange(5.0), owners=np.arange(5)))
    assert (data.x_train.dtype, data.y_train.dtype) == (torch.float32, torch.float32)
    assert (len(data.y_train), len(data.y_test)) == (4, 1)
    assert data.owners is not None
    assert data.owners.tolist() == data.y_train.tolist() == (data.x_train[:, 0] / 2).tolist()


def test_npz_arrays_of_other_names(tmp_path: Path) -> None:
    source = npz(tmp_path / "d.npz", pixels=np.zeros((5, 2)), digit=np.arange(5), who=np.arange(5))
    data = load(source, image_column="pixels", label_column="digit", partition_column="who")
    assert data.owners is not None
    assert data.owners.tolist() == data.y_train.tolist()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": [1.0]}, "it has no array 'y' or 'label', only x; give x_train, y_train, x_test, y_"),
        ({"x_train": [1.0], "y_train": [1]}, "no array 'x_test', only x_train, y_train"),
        ({"x": [1.0, 2], "y": 3}, "inputs and labels must have one entry an example, got one"),
        ({"x": [1.0, 2], "y": [["a", "b"]] * 2}, "floats or words of one shape, got <U1; check"),
        ({"x": [1.0], "y": [1, 2]}, "it has 1 inputs but 2 labels"),
        ({"x": [1.0, 2], "y": [1, 2], "owners": [1]}, "it has 1 owners but 2 labels"),
        ({"x": ["a", "b"], "y": [1, 2]}, "inputs must be numbers of one shape, got <U1; check"),
        ({"x": [1.0, 2], "y": [1, np.nan]}, "1 labels are missing; fill them"),
        ({"x": [1.0, 2], "y": [1j, 2]}, "labels must be integers, floats or words of one shape"),
        (
            {"x": np.array([{}, 1]), "y": [1, 2]},
            "array 'x' holds Python objects, which are not read: rows of",
        ),
        (
            {"x_train": [1.0], "y_train": [1], "x_test": [1.0], "y_test": [[1, 2]]},
            "training labels have shape [] each, test labels [2]; give them one shape",
        ),
    ],
)
def test_npz_refusals(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    text = refused(npz(tmp_path / "d.npz", **arrays))
    assert text.startswith(f"data.dataset 'file:{tmp_path}/d.npz': ")
    assert said in text


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"nothing")
    (tmp_path / "d.doc").write_bytes(b"nothing")
    assert "cannot be read as NPZ" in refused(f"file:{tmp_path}/d.npz")
    assert "a file must be a .csv, .tsv, .parquet or .npz, got .doc" in refused(
        f"file:{tmp_path}/d.doc"
    )
    assert refused(f"file:{tmp_path}/none") == (
        f"data.dataset 'file:{tmp_path}/none': there is no such file or folder; correct the path"
    )


# --- Hugging Face ----------------------------------------------------------------------------------

Hub = Callable[..., Dataset]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Load ``tmp_path/hub`` by Flower Datasets, with a cache of its own."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    args = {"cache_dir": str(tmp_path / "cache")}
    return lambda **keys: load(f"hf:{tmp_path}/hub", args=args, **keys)


def table(folder: Path, split: str, kinds: Any = None, /, **columns: Any) -> None:
    import datasets

    folder.mkdir(exist_ok=True)
    features = datasets.Features(kinds) if kinds else None
    made = datasets.Dataset.from_dict(columns, features=features)
    made.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_hub_images(tmp_path: Path, hub: Hub) -> None:
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "cow"])}
    grey = [Image.new("L", (3, 2), level) for level in (51, 102)]
    table(tmp_path / "hub", "train", kinds, image=grey, label=[1, 0])
    table(tmp_path / "hub", "test", kinds, image=grey[:1], label=[1])
    data = hub()
    assert data.x_train.shape == (2, 1, 2, 3)
    assert data.x_train[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.4])
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([1, 0], [1])
    assert data.classes == ("cat", "dog", "cow")  # in the data set's order
    assert data.name == f"hf:{tmp_path}/hub"


def test_hub_folder_of_images(tmp_path: Path, hub: Hub) -> None:
    for split in ("train", "test"):
        image(tmp_path / f"hub/{split}/cat/1.png", 51, "RGB")
        image(tmp_path / f"hub/{split}/dog/1.png", 51, "RGB")
    data = hub()
    assert data.x_train.shape == (2, 3, 2, 3)
    assert data.classes == ("cat", "dog")


def test_hub_lists_text_labels_and_owners(tmp_path: Path, hub: Hub) -> None:
    table(
        tmp_path / "hub", "train",
        features=[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], kind=["b", "a", "b"], writer=[9, 9, 4],
    )  # fmt: skip
    table(tmp_path / "hub", "validation", features=[[7.0, 8.0]], kind=["a"], writer=[1])
    data = hub(image_column="features", label_column="kind", partition_column="writer")
    assert data.x_train.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert data.x_test.tolist() == [[7, 8]]
    assert (data.y_train.tolist(), data.classes) == ([1, 0, 1], ("a", "b"))
    assert data.owners is not None
    assert data.owners.tolist() == [9, 9, 4]


def test_hub_columns_of_numbers(tmp_path: Path, hub: Hub) -> None:
    numbers = np.arange(10)
    table(tmp_path / "hub", "train", a=numbers, b=numbers * 2.0, label=numbers / 2)
    data = hub()
    assert (data.x_train.shape, data.x_test.shape) == ((8, 2), (2, 2))  # data.test-fraction
    assert data.y_train.dtype == torch.float32
    assert (data.x_train[:, 1] / 4).tolist() == data.y_train.tolist()
    again, other = hub(), hub(seed=1)
    assert data.digest == again.digest != other.digest


def test_hub_arrays_of_bytes(tmp_path: Path, hub: Hub) -> None:
    import datasets

    kinds = {"image": datasets.Array2D((2, 3), "uint8"), "label": datasets.Value("int64")}
    images = np.full((4, 2, 3), 51, np.uint8)
    table(tmp_path / "hub", "train", kinds, image=images, label=range(4))
    data = hub()
    assert data.x_train.shape == (3, 1, 2, 3)
    assert data.x_train.unique().tolist() == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("columns", "keys", "said"),
    [
        ({"a": [1.0, 2.0], "Label": [0, 1]}, {}, "data.label-column 'label' is no column of hf:"),
        (
            {"img": [[1.0], [2.0]], "label": [0, 1]},
            {},
            "data.image-column 'image' is no column of hf:",
        ),
        (
            {"a": [1, 2], "b": ["p", "q"], "label": [0, 1]},
            {},
            "column 'b' holds text, and models need",
        ),
        (
            {"image": ["a", "b"], "label": [0, 1]},
            {},
            "column 'image' holds text, and models need numbers; tokenise it, with a function",
        ),
        (
            {"image": [[1], [1, 2]], "label": [0, 1]},
            {},
            "column 'image' has rows of several lengths; make them one length",
        ),
        ({"image": [1, 2], "label": [0, None]}, {}, "column 'label' has 1 empty cells; fill them"),
    ],
)
def test_hub_refusals(
    tmp_path: Path, hub: Hub, columns: dict[str, Any], keys: dict[str, Any], said: str
) -> None:
    table(tmp_path / "hub", "train", **columns)
    table(tmp_path / "hub", "test", **columns)
    with pytest.raises(DataError) as caught:
        hub(**keys)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hub_labels_that_are_no_class(tmp_path: Path, hub: Hub) -> None:
    import datasets

    kinds = {"image": datasets.Value("float32"), "label": datasets.ClassLabel(names=["a", "b"])}
    table(tmp_path / "hub", "train", kinds, image=[1, 2], label=[0, 1])
    table(tmp_path / "hub", "test", kinds, image=[1, 2], label=[0, -1])
    with pytest.raises(DataError, match=r"labels must be in 0\.\.1, its classes, got -1"):
        hub()


def test_hub_without_a_training_split(tmp_path: Path, hub: Hub) -> None:
    for split in ("test", "validation"):
        table(tmp_path / "hub", split, image=[1.0], label=[0])
    with pytest.raises(DataError, match="it has no split 'train', only"):
        hub()


def test_hub_without_the_folder(tmp_path: Path) -> None:
    assert refused(f"hf:{tmp_path}/none").endswith("there is no such folder; correct the path")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ConnectionError("Couldn't reach 'o/n'\non the Hub"), "connect to the network once"),
        (FileNotFoundError("Dataset 'o/n' doesn't exist"), "check the name, and data.args"),
    ],
)
def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str) -> None:
    import datasets

    def load_dataset(**_: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    text = refused("hf:o/n")
    assert text.startswith(f"data.dataset 'hf:o/n': cannot be loaded: {type(error).__name__}: ")
    assert remedy in text


# --- a function of the user's own --------------------------------------------------------------------


def own(tmp_path: Path, body: str) -> str:
    head = "import numpy as np, torch\ndef make(n=2, **rest):\n"
    (tmp_path / "mine.py").write_text(head + textwrap.indent(body, "    "), encoding="utf-8")
    return f"{tmp_path}/mine.py:make"


def test_own_dict(tmp_path: Path) -> None:
    source = own(
        tmp_path,
        "return dict(x_train=np.zeros((n, 4)), y_train=[0] * (n - 1) + [2],\n"
        "            x_test=torch.ones(1, 4), y_test=torch.tensor([1]), owners=['a'] * n)",
    )
    data = load(source, args={"n": 5})
    assert (len(data.y_train), data.x_train.dtype) == (5, torch.float32)
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 0, 0, 0, 2], [1])
    assert data.classes == ("0", "1", "2")
    assert data.owners is not None
    assert data.owners.tolist() == ["a"] * 5


def test_own_dict_keeps_tokens_and_scales_images(tmp_path: Path) -> None:
    body = (
        "x = np.full((2, 3, 3), 51, rest['kind'])\n"
        "return dict(x_train=x, y_train=x, x_test=x, y_test=x)"
    )
    tokens = load(own(tmp_path, body), args={"kind": "int32"})
    assert (tokens.x_train.dtype, tokens.y_train.dtype) == (torch.int64, torch.int64)
    assert (tokens.x_train.unique().tolist(), tokens.classes) == ([51], ())
    images = load(own(tmp_path, body), args={"kind": "uint8"})
    assert images.x_train.shape == (2, 1, 3, 3)
    assert images.x_train.unique().tolist() == pytest.approx([0.2])


def test_own_dataset(tmp_path: Path) -> None:
    source = own(
        tmp_path,
        "from flsimulation.data import Dataset\n"
        "x, y = torch.zeros(2, 1), torch.tensor([0, 1])\n"
        "return Dataset('blobs', x, y, x, y, ('no', 'yes'))",
    )
    data = load(source)
    assert (data.name, data.classes) == ("blobs", ("no", "yes"))


FULL = "x_train=[1.0], y_train=[0], x_test=[1.0], y_test=[0]"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", "called with data.args {} it raised ZeroDivisionError: division by zero (mine.py:3)"),
        ("return 7", "it must return a Dataset or a dict of arrays, got int"),
        ("return dict(x_train=[1], y_trian=[0])", "a dict without 'y_train'; add it, instead of 'y_trian'"),
        (f"return dict({FULL}, owner=[1])", "it returned owner, but only x_train, y_train,"),
        (f"return dict({FULL}, owners=[1, 2])", "it has 2 owners but 1 labels"),
        (f"return dict({FULL}) | dict(y_train=[-1])", "labels must be in 0..0, its classes, got -1"),
        (f"return dict({FULL}, classes=['a']) | dict(y_test=[1])", "must be in 0..0, its classes, got 1"),
        (f"return dict({FULL}) | dict(x_train=[[1], [1, 2]])", "x_train is no array: setting an array"),
        (f"return dict({FULL}) | dict(y_train=['a'])", "y_train: words in one of training and test set, numbers in the other"),
        (f"return dict({FULL}) | dict(y_train=3)", "y_train must be an array of numbers or words, got int;"),
        (f"return dict({FULL}, classes=3)", "classes must be an array of numbers or words, got int;"),
        (f"return dict({FULL}, owners=[None])", "owners must be an array of numbers or words, got object"),
        (f"return dict({FULL}) | dict(y_test=[[0, 1]] * 2, x_test=[1.0, 2.0])", "labels have shape [] each, test labels [2]; give them one shape"),
        (f"return dict({FULL}) | dict(y_train=[])", "it has 1 inputs but 0 labels"),
    ],
)  # fmt: skip
def test_own_refusals(tmp_path: Path, body: str, said: str) -> None:
    assert said in refused(own(tmp_path, body))


def test_an_array_that_is_missing_is_not_one_that_has_a_name_of_its_own(tmp_path: Path) -> None:
    assert refused(own(tmp_path, "return dict(x_train=[1])")).endswith("without 'y_train'; add it")


def test_own_function_that_is_none(tmp_path: Path) -> None:
    source = own(tmp_path, "return 1")
    assert "has no attribute 'mkae'; did you mean 'make'?" in refused(
        source.replace(":make", ":mkae")
    )
    assert "it must be a function, got str" in refused(source.replace(":make", ":__name__"))
    assert refused("no_such_module:make").startswith(
        "data.dataset 'no_such_module:make': no module"
    )


# --- anything else -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mnits", "; did you mean 'mnist'?"),
        ("Fashion_MNIST", "; did you mean 'fashion-mnist'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    assert refused(name) == (
        "data.dataset must be mnist, fashion-mnist, synthetic, file:PATH, sites:FOLDER, hf:OWNER/NAME, "
        f"module:function or path/to/file.py:function, got {name!r}{hint}"
    )


def test_a_bare_path(tmp_path: Path) -> None:
    assert refused(tmp_path).endswith(f"got '{tmp_path}'; did you mean 'file:{tmp_path}'?")


def test_args_without_a_function() -> None:
    assert refused("mnist", args={"n": 1}) == (
        "data.args {'n': 1} has no meaning for 'mnist'; remove it"
    )


@pytest.mark.seconds
def test_importing_imports_nothing_heavy() -> None:
    program = (
        "import sys, flsimulation.data;"
        "print([m for m in ('flwr', 'flwr_datasets', 'datasets', 'PIL', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
