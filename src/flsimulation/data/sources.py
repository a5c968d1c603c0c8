"""The data set that an experiment names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flsimulation.data.dataset import Dataset
from flsimulation.data.files import load_file
from flsimulation.data.own import load_own
from flsimulation.data.shipped import load_fashion_mnist, load_mnist
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
    f"{', '.join(_NAMED)}, file:PATH, hf:OWNER/NAME, module:function or path/to/file.py:function"
)


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
    name = spec.dataset
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
