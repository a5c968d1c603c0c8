"""The data set that an experiment names."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from flsimulation.data.dataset import Dataset
from flsimulation.data.files import load_file
from flsimulation.data.own import load_own
from flsimulation.data.shipped import load_fashion_mnist, load_mnist
from flsimulation.data.sites.joined import load_sites
from flsimulation.data.synthetic import load_synthetic
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data
from flsimulation.experiment.suggest import did_you_mean, nearest

_NAMED: dict[str, Callable[[Data, int], Dataset]] = {
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "synthetic": load_synthetic,
}
_FORMS = (
    f"{', '.join(_NAMED)}, file:PATH, sites:FOLDER, hf:OWNER/NAME, module:function or "
    f"path/to/file.py:function"
)
_READ_AHEAD = ("mnist", "fashion-mnist")  # files only: no code of a user's, and no slow imports


class _Ahead(NamedTuple):
    """A data set that is being read."""

    spec: Data
    seed: int
    dataset: Future[Dataset]


_ahead: list[_Ahead] = []


@contextlib.contextmanager
def read_ahead(spec: Data, seed: int) -> Iterator[None]:
    """Read a data set of a known name in another thread, while the block imports what a run needs.

    `load_dataset` takes it from there, once, in the block. An error of the thread is ignored:
    `load_dataset` reads again, and raises it.

    Parameters
    ----------
    spec, seed
        As in `load_dataset`.
    """
    reading = _Ahead(spec, seed, Future())
    if spec.dataset not in _READ_AHEAD:
        yield
        return
    _ahead.append(reading)
    # no daemon: one that ends with the program, inside PyTorch, aborts it
    threading.Thread(target=_read, args=reading).start()
    try:
        yield
    finally:
        _ahead[:] = [other for other in _ahead if other is not reading]


def _read(spec: Data, seed: int, dataset: Future[Dataset]) -> None:
    try:
        dataset.set_result(read := _load(spec, seed))
    except Exception as error:
        dataset.set_exception(error)
    else:
        _ = read.digest  # kept in the data set; a run's start needs it


def _taken(spec: Data, seed: int) -> Dataset | None:
    """The data set, if it was read ahead."""
    found = next((one for one in _ahead if (one.spec, one.seed) == (spec, seed)), None)
    if found is None:
        return None
    _ahead[:] = [other for other in _ahead if other is not found]
    return found.dataset.result() if found.dataset.exception() is None else None


def load_dataset(spec: Data, seed: int) -> Dataset:
    """Read the data set behind ``data.dataset``.

    Parameters
    ----------
    spec : Data
        The experiment's section ``data``.
    seed : int
        The experiment's seed; it decides which examples ``data.test-fraction`` sets aside, and
        what ``synthetic`` draws.

    Raises
    ------
    DataError
        In one line, if there is no such data set or it cannot be used as it is.
    """
    dataset = _taken(spec, seed)
    if dataset is None:
        dataset = _load(spec, seed)
    if spec.input_columns and not dataset.columns and not spec.dataset.startswith("hf:"):
        raise DataError(
            f"data.input-columns are those of a table, and {spec.dataset!r} is none; remove them"
        )
    return dataset


def _load(spec: Data, seed: int) -> Dataset:
    name = spec.dataset
    if spec.of_sites:
        return load_sites(spec)
    if name.startswith("hf:"):
        from flsimulation.data.hub import load_hub

        return load_hub(spec, seed)
    if ":" in name and not name.startswith("file:"):
        return load_own(spec, seed)
    if spec.args and name != "synthetic":
        raise DataError(f"data.args {spec.args!r} has no meaning for {name!r}; remove it")
    if name.startswith("file:"):
        return load_file(spec, seed)
    if name in _NAMED:
        return _NAMED[name](spec, seed)
    raise _unknown(name)


def _unknown(name: str) -> DataError:
    near = nearest(name.replace("_", "-"), _NAMED)
    if name and Path(name).expanduser().exists():
        near = f"file:{name}"
    return DataError(f"data.dataset must be {_FORMS}, got {name!r}{did_you_mean(near)}")
