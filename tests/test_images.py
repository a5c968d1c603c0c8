"""Images and arrays of images as users have them: right pixels, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flsimulation.data import load_dataset
from flsimulation.data.dataset import Dataset
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


def load(dataset: str | Path, **keys: Any) -> Dataset:
    name = dataset if isinstance(dataset, str) else f"file:{dataset}"
    return load_dataset(Data(dataset=name, **keys), 0)


def refused(dataset: str | Path, **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(dataset, **keys)
    text = str(caught.value)
    assert "\n" not in text
    return text


def save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def beside(folder: Path, image: Image.Image, ending: str = "png", **options: Any) -> torch.Tensor:
    """Pixels [c, h, w] of the image, which is loaded as the training set of a folder."""
    save(folder / f"train/a/1.{ending}", image, **options)
    save(folder / "test/a/1.png", Image.new("L", image.size))
    return first(load(folder))


def first(data: Dataset) -> torch.Tensor:
    x = data.x_train
    assert isinstance(x, torch.Tensor)
    return x[0]


def levels(*values: int, mode: str = "L") -> Image.Image:
    """One row of pixels."""
    kind: Any = {"L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    return Image.fromarray(np.array([values], kind))


# --- modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "ending", "pixels"),
    [
        (Image.new("1", (2, 1), 1), "png", [[1, 1]]),
        (levels(0, 51), "png", [[0, 0.2]]),
        (levels(0, 51), "webp", None),  # webp has colours only
        (levels(0, 13107, 65535, mode="I;16"), "png", [[0, 0.2, 1]]),
        (levels(0, 13107, 65535, mode="I"), "tif", [[0, 0.2, 1]]),
        (Image.fromarray(np.array([[0, 0.25, 1]], np.float32)), "tiff", [[0, 0.25, 1]]),
        (levels(7, 255).convert("P"), "gif", [[7 / 255, 1]]),
        (levels(7, 255).convert("P"), "png", [[7 / 255, 1]]),
    ],
)
def test_grey_images_of_any_mode(
    tmp_path: Path, image: Image.Image, ending: str, pixels: list[Any] | None
) -> None:
    found = beside(tmp_path, image, ending, **({"lossless": True} if ending == "webp" else {}))
    if pixels is None:
        assert found.flatten(1).tolist() == [pytest.approx([0, 0.2])] * 3
    else:
        assert found.shape == (1, 1, image.size[0])
        assert found[0].tolist() == [pytest.approx(row) for row in pixels]


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("CMYK", "tif"), ("RGB", "bmp")],
)
def test_colour_images_of_any_mode(tmp_path: Path, mode: str, ending: str) -> None:
    found = beside(tmp_path, Image.new("RGB", (2, 1), (51, 102, 255)).convert(mode), ending)
    assert found.shape == (3, 1, 2)
    assert found[:, 0, 1].tolist() == pytest.approx([0.2, 0.4, 1], abs=1 / 254)


def test_bytes_and_sixteen_bits_beside_each_other_have_one_scale(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png", levels(0, 51, 255))
    save(tmp_path / "train/a/2.png", levels(0, 13107, 65535, mode="I;16"))
    save(tmp_path / "test/a/1.png", levels(0, 4095, 30, mode="I;16"))
    data = load(tmp_path)
    assert isinstance(data.x_train, torch.Tensor)
    assert data.x_train.flatten(1).tolist() == [pytest.approx([0, 0.2, 1])] * 2
    assert data.x_train.dtype == torch.float32
    note = "images: 3 of 3x1, grey; 2 of them with 16 bits a pixel, divided by 65535 (the largest is 1)"
    assert note in data.notes


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (levels(-5, 10, mode="I"), "must be in 0 to 65535, got -5 to 10; scale them"),
        (levels(0, 70_000, mode="I"), "must be in 0 to 65535, got 0 to 70000; scale them"),
        (levels(-1000, 3000, mode="F"), "floats must be in 0 to 1, got -1000.0 to 3000.0; scale"),
    ],
)
def test_pixels_that_have_no_known_scale(tmp_path: Path, image: Image.Image, said: str) -> None:
    save(tmp_path / "a/1.tif", image)
    text = refused(tmp_path)
    assert f"{tmp_path}/a/1.tif: pixels of " in text
    assert said in text


def transparent(alpha: list[int], mode: str = "RGBA") -> Image.Image:
    image = Image.new(mode[:-1], (len(alpha), 1), 200 if mode == "LA" else (200, 100, 50))
    image.putalpha(levels(*alpha))
    return image


@pytest.mark.parametrize(
    ("alpha", "red", "note"), [([255, 0], [200, 0], True), ([9, 9], [200, 200], False)]
)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_black_and_dropped_where_it_is_constant(
    tmp_path: Path, mode: str, alpha: list[int], red: list[int], note: bool
) -> None:
    save(tmp_path / "train/a/1.png", transparent(alpha, mode))
    save(tmp_path / "test/a/1.png", levels(0, 0))
    data = load(tmp_path)
    assert (first(data)[0, 0] * 255).tolist() == pytest.approx(red)
    assert len(first(data)) == (1 if mode == "LA" else 3)
    assert ("1 with transparency, composited on black" in data.notes[0]) is note


def test_a_camera_that_was_held_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 8))  # its left half is the top of the scene
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "train/a/1.jpg", image, exif=exif)
    save(tmp_path / "test/a/1.png", Image.new("L", (8, 16)))
    data = load(tmp_path)
    pixels = first(data)
    assert pixels.shape == (3, 16, 8)
    assert pixels[:, :7].min() > 0.9
    assert pixels[:, 9:].max() < 0.1
    assert "; 1 turned as their EXIF orientation says" in data.notes[0]


def test_the_first_frame_is_used_and_said(tmp_path: Path) -> None:
    frames = [levels(255, 255), levels(0, 0)]
    save(tmp_path / "train/a/1.tif", frames[0], save_all=True, append_images=frames[1:])
    save(tmp_path / "test/a/1.png", levels(0, 0))
    data = load(tmp_path)
    assert first(data).tolist() == [[[1, 1]]]
    assert data.notes[0].endswith(
        f"1 of several frames, the first is used ({tmp_path}/train/a/1.tif)"
    )


# --- size and channels -------------------------------------------------------------------------------


def of_sizes(folder: Path) -> None:
    for number, side in enumerate((4, 4, 4, 8, 2)):
        save(folder / f"a/{number}.png", Image.new("L", (side, side), 51))


def test_sizes_that_differ_are_counted(tmp_path: Path) -> None:
    of_sizes(tmp_path)
    assert refused(tmp_path).endswith(
        f"images have 3 sizes, for example 4x4 (3 images) and 8x8 (1, such as {tmp_path}/a/3.png); "
        f"set data.image-size"
    )


def test_images_are_resized(tmp_path: Path) -> None:
    of_sizes(tmp_path)
    data = load(tmp_path, image_size=6)
    assert isinstance(data.x_train, torch.Tensor)
    assert isinstance(data.x_test, torch.Tensor)
    assert (data.x_train.shape, data.x_test.shape) == ((4, 1, 6, 6), (1, 1, 6, 6))
    assert data.x_train.unique().tolist() == pytest.approx([0.2])
    assert data.notes[0] == "images: 5 of 6x6, grey, resized from 3 sizes"


@pytest.mark.parametrize(("depth", "full"), [(np.uint8, 255), (np.uint16, 65535)])
def test_shrinking_averages_instead_of_leaving_pixels_out(
    tmp_path: Path, depth: Any, full: int
) -> None:
    stripes = np.zeros((32, 32), depth)
    stripes[:, ::2] = full
    for place in ("train", "test"):
        save(tmp_path / place / "a/1.png", Image.fromarray(stripes))
    assert first(load(tmp_path, image_size=4)).flatten().tolist() == pytest.approx(
        [0.5] * 16, abs=0.1
    )


def test_image_mode(tmp_path: Path) -> None:
    for place in ("train", "test"):
        save(tmp_path / place / "a/1.png", Image.new("RGB", (1, 1), (255, 0, 0)))
        save(tmp_path / place / "a/2.png", levels(51))
    auto, grey, rgb = (load(tmp_path, image_mode=mode) for mode in ("auto", "grey", "rgb"))
    assert first(auto).flatten().tolist() == [1, 0, 0]
    assert first(grey).flatten().tolist() == pytest.approx([0.299], abs=0.003)  # as in ITU-R 601
    assert torch.equal(first(rgb), first(auto))
    assert "2 of them grey, with three equal channels" in auto.notes[0]
    assert "2 of them in colour, made grey" in grey.notes[0]


def test_grey_images_are_made_colour_on_request(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png", levels(0, 13107, mode="I;16"))
    save(tmp_path / "test/a/1.png", levels(0, 255))
    pixels = first(load(tmp_path, image_mode="rgb"))
    assert pixels.flatten(1).tolist() == [pytest.approx([0, 0.2])] * 3


# --- files and folders -------------------------------------------------------------------------------


def test_damaged_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
    save(tmp_path / "a/1.png", Image.fromarray(noise))
    whole = (tmp_path / "a/1.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"no image", b""):
        (tmp_path / "a/2.png").write_bytes(content)
        text = refused(tmp_path)
        assert f"{tmp_path}/a/2.png cannot be read as an image: " in text
        assert text.endswith("; repair or remove it")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/more/1.png"):
        save(tmp_path / name, levels(1, 2))
    (tmp_path / "none").mkdir()
    for name in ("labels.csv", "a/notes.txt", "a/.DS_Store", "b/Thumbs.db"):
        (tmp_path / name).write_text("x")
    data = load(tmp_path)
    assert data.classes == ("a", "b")
    assert len(data.y_train) + len(data.y_test) == 3
    for note in (
        "2 files are no images and are left out, such as labels.csv",
        "images in folders of b/ are not used: 1, such as b/more/1.png; move them up",
        "the folder none/ has no images; it is no class",
    ):
        assert note in data.notes


def test_folders_beside_train(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "more/a/1.png"):
        save(tmp_path / name, levels(1, 2))
    data = load(tmp_path)
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 1], [0])  # val is the test set
    assert "beside train, the folder more is not used" in data.notes
    assert "the test set has no image of b" in data.notes


def test_images_that_no_folder_gives_a_class(tmp_path: Path) -> None:
    save(tmp_path / "1.png", levels(1))
    assert "1 images lie in the folder itself, which does not say their classes" in refused(
        tmp_path
    )


def test_folders_that_are_numbers_are_targets_of_a_regression(tmp_path: Path) -> None:
    for name in ("train/2.5/1.png", "train/40/1.png", "test/7/1.png"):
        save(tmp_path / name, levels(1))
    data = load(tmp_path, task="regression")
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([2.5, 40], [7])
    assert (data.task, data.classes) == ("regression", ())
    (tmp_path / "test/7").rename(tmp_path / "test/old")
    assert (
        "needs folders whose names are numbers: could not convert string to float: 'old'"
        in refused(tmp_path, task="regression")
    )


# --- segmentation ------------------------------------------------------------------------------------


def masked(folder: Path, *masks: Image.Image, end: str = "") -> Path:
    for number, mask in enumerate(masks):
        save(folder / f"images/{number}.png", Image.new("RGB", (3, 2), (number, 0, 0)))
        save(folder / f"masks/{number}{end}.png", mask)
    return folder


def mask(*values: int) -> Image.Image:
    return Image.fromarray(np.array(values, np.uint8).reshape(2, 3))


@pytest.mark.parametrize("end", ["", "_mask"])
def test_masks_of_class_numbers(tmp_path: Path, end: str) -> None:
    one, other = (0, 1, 2, 2, 2, 2), (0, 0, 0, 0, 4, 255)
    masked(tmp_path / "train", mask(*one), mask(*other), end=end)
    masked(tmp_path / "test", mask(*one), end=end)
    data = load(tmp_path)
    assert (data.y_train.dtype, data.task) == (torch.int64, "segmentation")
    assert data.y_train.tolist() == [[[0, 1, 2], [2, 2, 2]], [[0, 0, 0], [0, 4, -100]]]
    assert data.y_test.tolist() == [[[0, 1, 2], [2, 2, 2]]]
    assert data.classes == ("0", "1", "2", "3", "4")
    assert isinstance(data.x_train, torch.Tensor)
    assert (data.x_train[:, 0, 0, 0] * 255).tolist() == [0, 1]  # each beside its mask
    assert any("the values 0, 1, 2, 4 are class numbers; 255 is no class" in n for n in data.notes)


def test_masks_of_black_and_white_and_of_palettes(tmp_path: Path) -> None:
    white = mask(0, 255, 0, 255, 0, 0)
    masked(tmp_path / "a", white, white, white.convert("RGB"))
    data = load(tmp_path / "a")
    assert (data.classes, len(data.y_train), len(data.y_test)) == (("0", "1"), 2, 1)
    assert data.y_test.tolist() == [[[0, 1, 0], [1, 0, 0]]]
    deep = Image.fromarray(np.array([[0, 65535, 0], [0, 0, 0]], np.uint16))
    masked(tmp_path / "deep", deep, deep)
    assert load(tmp_path / "deep").y_train.tolist() == [[[0, 1, 0], [0, 0, 0]]]
    palette = Image.fromarray(np.array([[0, 1, 2], [0, 0, 1]], np.uint8))
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    assert palette.mode == "P"
    masked(tmp_path / "b", palette, palette)
    assert load(tmp_path / "b").y_train.tolist() == [[[0, 1, 2], [0, 0, 1]]]


def test_masks_are_resized_without_mixing_classes(tmp_path: Path) -> None:
    masked(tmp_path, *[mask(0, 9, 0, 9, 0, 9)] * 2)
    save(tmp_path / "images/0.png", Image.new("RGB", (30, 20)))
    data = load(tmp_path, image_size=5)
    assert data.y_train.shape == (1, 5, 5)
    assert data.y_train.unique().tolist() == [0, 9]


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    masked(tmp_path, mask(0, 1, 0, 1, 0, 0), mask(0, 1, 0, 1, 0, 0))
    save(tmp_path / "masks/7.png", mask(0, 0, 0, 0, 0, 0))
    assert "1 masks have no image and are left out, such as 7.png" in load(tmp_path).notes
    (tmp_path / "masks/1.png").unlink()
    assert f"1 of 2 images have no mask, such as {tmp_path}/images/1.png; add" in refused(tmp_path)
    save(tmp_path / "masks/1.png", Image.new("L", (3, 3)))
    assert f"{tmp_path}/masks/1.png has 3x3 pixels, but {tmp_path}/images/1.png 3x2" in refused(
        tmp_path
    )
    save(tmp_path / "masks/1.png", mask(0, 128, 200, 0, 0, 0))
    assert "masks have the 4 values 0, 1, 128, 200, no class numbers; number" in refused(tmp_path)
    save(tmp_path / "masks/1.png", Image.new("RGB", (3, 2), (255, 0, 0)))
    assert "masks/1.png marks classes by colours; save grey values" in refused(tmp_path)


def test_a_task_makes_folders_of_masks_classes(tmp_path: Path) -> None:
    masked(tmp_path, *[mask(0, 1, 0, 1, 0, 0)] * 3)
    assert load(tmp_path, task="classification").classes == ("images", "masks")


# --- NPZ -------------------------------------------------------------------------------------------


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "d.npz", **arrays)
    return f"file:{folder}/d.npz"


def test_npz_under_other_names(tmp_path: Path) -> None:
    images, labels = np.full((4, 9, 9, 3), 51, np.uint8), np.array([[0], [1], [0], [1]])
    arrays = {"train_images": images, "train_labels": labels, "test_images": images[:2]}
    arrays |= {"test_labels": labels[:2], "val_images": images}
    data = load(npz(tmp_path, **arrays, classes=np.array(["cat", "dog"])))
    assert data.y_train.tolist() == [0, 1, 0, 1]
    assert data.classes == ("cat", "dog")
    assert first(data).unique().tolist() == pytest.approx([0.2])
    assert "arrays: inputs train_images, labels train_labels" in data.notes
    assert "arrays that are not used: val_images" in data.notes
    upper = load(npz(tmp_path, X=np.arange(8.0).reshape(4, 2), Y=[0, 0, 1, 1]))
    assert len(upper.y_train) == 3


def test_npz_with_names_that_are_nearly_right(tmp_path: Path) -> None:
    numbers = np.arange(4.0)
    text = refused(npz(tmp_path, X_train=numbers, Y_train=numbers, X_tets=numbers, Y_test=numbers))
    assert "it has no array 'x_test', only X_train, Y_train, X_tets, Y_test; give" in text
    assert text.endswith("; did you mean 'X_tets'?")


def test_npz_of_deep_images(tmp_path: Path) -> None:
    x = np.zeros((4, 2, 3), np.uint16)
    x[..., 1:] = 13107, 65535
    data = load(npz(tmp_path, x=x, y=[0, 1, 0, 1]))
    assert first(data).tolist() == [[pytest.approx([0, 0.2, 1])] * 2]
    assert "images: uint16, divided by 65535" in data.notes


def test_npz_of_float_images_with_their_channels_last(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((4, 9, 8, 3))
    four = {"x_train": x, "y_train": [0, 1, 0, 1], "x_test": x[:1], "y_test": [0]}
    data = load(npz(tmp_path, **four))
    assert first(data).shape == (3, 9, 8)
    assert torch.equal(first(data), torch.from_numpy(x[0].astype(np.float32)).permute(2, 0, 1))
    note = "floats of shape [n, 9, 8, 3] have their channels last; they were moved to [n, 3, 9, 8]"
    assert f"images: {note}" in data.notes
    assert (
        "images: floats from 0 to 255 are not scaled"
        in load(
            npz(tmp_path, x=np.linspace(0, 255, 324).reshape(4, 1, 9, 9), y=[0, 1, 0, 1])
        ).notes[0]
    )


@pytest.mark.parametrize("shape", [(4, 3, 8, 3), (4, 5, 9, 3), (4, 9, 8, 5)])
def test_other_floats_stay_as_they_are(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = load(npz(tmp_path, x=np.random.default_rng(0).random(shape), y=[0, 1, 0, 1]))
    assert first(data).shape == shape[1:]


@pytest.mark.parametrize("name", ["x", "y", "owners"])
def test_npz_of_objects_names_the_array(tmp_path: Path, name: str) -> None:
    arrays: dict[str, Any] = {"x": np.arange(4.0), "y": np.array([0, 1, 0, 1])}
    arrays[name] = np.array([[1, 2], [1], [2], None], object)
    text = refused(npz(tmp_path, **arrays))
    assert f"array {name!r} holds Python objects, which are not read" in text
    assert "numpy.stack" in text


# --- Hugging Face ----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Load a table of these columns by Flower Datasets, with a cache of its own."""
    import datasets

    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")

    def load_columns(kinds: dict[str, Any], columns: dict[str, Any], **keys: Any) -> Dataset:
        (tmp_path / "hub").mkdir()
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        made.to_parquet(tmp_path / "hub/train-00000-of-00001.parquet")
        made.to_parquet(tmp_path / "hub/test-00000-of-00001.parquet")
        return load(f"hf:{tmp_path}/hub", args={"cache_dir": str(tmp_path / "cache")}, **keys)

    return load_columns


def test_hub_images_of_mixed_modes(hub: Callable[..., Dataset]) -> None:
    import datasets

    images = [levels(51), levels(13107, mode="I;16"), transparent([0]), Image.new("RGB", (1, 1))]
    many = [images[i % 4] for i in range(130)]  # more than are in memory at a time
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    data = hub(kinds, {"image": many, "label": [i % 2 for i in range(130)]})
    assert isinstance(data.x_train, torch.Tensor)
    assert data.x_train.shape == (130, 3, 1, 1)
    red = [0.2, 0.2, 200 / 255, 0]  # its alpha is the same everywhere
    assert data.x_train[:, 0, 0, 0].tolist() == pytest.approx((red * 33)[:130])
    assert data.notes[0].startswith("images: 260 of 1x1, RGB; 132 of them grey")


@pytest.mark.parametrize(
    ("label", "classes"), [([0.5, 1.5, 2.5], ()), (["p", "q", "p"], ("p", "q"))]
)
def test_hub_labels_of_any_kind(
    hub: Callable[..., Dataset], label: list[Any], classes: tuple[str, ...]
) -> None:
    import datasets

    kind = "string" if classes else "float64"
    kinds = {"image": datasets.Array2D((2, 2), "float32"), "label": datasets.Value(kind)}
    data = hub(kinds, {"image": np.ones((3, 2, 2), np.float32), "label": label})
    assert data.classes == classes
    assert data.y_train.tolist() == ([0, 1, 0] if classes else label)


def test_hub_arrays_of_sixteen_bits(hub: Callable[..., Dataset]) -> None:
    import datasets

    kinds = {"image": datasets.Array2D((1, 2), "uint16"), "label": datasets.Value("int64")}
    data = hub(kinds, {"image": np.array([[[13107, 65535]]] * 2, np.uint16), "label": [0, 1]})
    assert first(data).tolist() == [[pytest.approx([0.2, 1])]]


def test_hub_tokens(hub: Callable[..., Dataset]) -> None:
    import datasets

    kinds = {"text": datasets.List(datasets.Value("int32")), "label": datasets.Value("int64")}
    data = hub(kinds, {"text": [[5, 6], [7, 8]], "label": [0, 1]}, image_column="text")
    assert isinstance(data.x_train, torch.Tensor)
    assert (data.x_train.dtype, data.x_train.tolist()) == (torch.int64, [[5, 6], [7, 8]])


def test_hub_labels_that_are_images(hub: Callable[..., Dataset]) -> None:
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.Image()}
    with pytest.raises(
        DataError, match="column 'label' holds images, which are labels only as mas"
    ):
        hub(kinds, {"image": [levels(1)], "label": [levels(1)]})


def test_hub_images_that_are_missing(hub: Callable[..., Dataset]) -> None:
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.Value("int64")}
    with pytest.raises(DataError, match="column 'image' has 1 rows without an image; remove them"):
        hub(kinds, {"image": [levels(1), None], "label": [0, 1]})
