"""Data sets with a name of their own: MNIST, which ships here, and Fashion-MNIST, if installed."""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from flsimulation.data.arrays import Examples, assemble, refusal
from flsimulation.data.dataset import Dataset
from flsimulation.data.files import read_idx_folder
from flsimulation.data.idx import parse_idx
from flsimulation.data.task import About
from flsimulation.experiment.spec import Data

FASHION_VARIABLE = "FLSIM_FASHION_MNIST"
"""Environment variable that names the folder of Fashion-MNIST's four IDX files."""
FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts them."""
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def load_mnist(spec: Data, seed: int, folder: Traversable | None = None) -> Dataset:
    """Load MNIST from the files in this package, each checked against its SHA-256.

    Raises
    ------
    DataError
        If a file is missing or differs from the original.
    """
    folder = folder or resources.files("flsimulation.data").joinpath("mnist")
    lines = _read(folder, "SHA256SUMS", spec).decode().splitlines()
    digests = {name: digest for digest, name in (line.split() for line in lines)}
    train, test = (
        Examples(
            *(
                parse_idx(_verified(folder, name, digests[name], spec), name)
                for name in (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
            )
        )
        for part in ("train", "t10k")
    )
    return assemble(spec, seed, train, test, about=About(quiet=True))


def load_fashion_mnist(spec: Data, seed: int) -> Dataset:
    """Load Fashion-MNIST from a local copy.

    Raises
    ------
    DataError
        If there is none.
    """
    folder = Path(os.environ.get(FASHION_VARIABLE) or FASHION_FOLDER)
    if not folder.is_dir():
        raise refusal(
            spec,
            f"there is no copy in {folder}; install Debian's package dataset-fashion-mnist, set "
            f"{FASHION_VARIABLE} to the folder of the four IDX files (or use file:PATH), or use "
            f"hf:zalando-datasets/fashion_mnist",
        )
    return read_idx_folder(folder, spec, FASHION_CLASSES).assembled(seed)


def _read(folder: Traversable, name: str, spec: Data) -> bytes:
    try:
        return folder.joinpath(name).read_bytes()
    except OSError as error:
        raise refusal(spec, f"{name} cannot be read: {error}; reinstall flsimulation") from None


def _verified(folder: Traversable, name: str, digest: str, spec: Data) -> bytes:
    content = _read(folder, name, spec)
    if (got := hashlib.sha256(content).hexdigest()) != digest:
        raise refusal(
            spec,
            f"{name} is damaged: its SHA-256 must be {digest}, got {got}; reinstall flsimulation",
        )
    return content
