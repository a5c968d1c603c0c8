"""``sites:FOLDER``: which sites a folder has, and which keys of ``data`` fit them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flsimulation.experiment.section import kebab

if TYPE_CHECKING:
    from flsimulation.experiment.data_section import Data

PREFIX = "sites:"
ENDINGS = (".csv.gz", ".tsv.gz", ".csv", ".tsv", ".parquet", ".npz")
"""How the names of files with a site's data end; what is before the ending is the site's name."""
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Names that are safe in labels, file names and addresses."""
_ONLY_OF_SITES = (
    *("sites", "reader", "test", "classes", "categories", "fill_columns", "constant"),
    "share_histogram",
)
_NAMING = "letters, digits, '.', '_' and '-', 63 at most"


def of_folder(table: dict[str, Any]) -> dict[str, Any]:
    """The table ``data`` with the keys that a folder of sites decides, unless they are there.

    Raises
    ------
    ValueError
        If there is no such folder and ``data.sites`` does not name the sites, or if the folder has
        no sites, two of one name, or one with a name that cannot be used.
    """
    dataset = table.get("dataset")
    if not isinstance(dataset, str) or not dataset.startswith(PREFIX):
        return table
    names = table.get("sites") or list(site_paths(dataset, any_file=bool(table.get("reader"))))
    decided = {"sites": names, "clients": len(names), "partition": "natural"}
    return decided | {kebab(key): value for key, value in table.items() if value or key != "sites"}


def site_paths(dataset: str, *, any_file: bool = False) -> dict[str, Path]:
    """Path of each site in the folder of ``sites:FOLDER``, in sorted order of their names.

    Parameters
    ----------
    any_file : bool
        Whether files with any ending are sites, because a user's function reads them.

    Raises
    ------
    ValueError
        As of `of_folder`.
    """
    folder = Path(dataset.removeprefix(PREFIX)).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"dataset {dataset!r}: there is no such folder; create it, or name the sites in data.sites"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if (name := _name(path, any_file=any_file)) is None:
            continue
        _check_name(name, path, dataset)
        if name in found:
            raise ValueError(
                f"dataset {dataset!r}: {found[name].name} and {path.name} are both the site {name!r}; "
                f"rename one"
            )
        found[name] = path
    if not found:
        raise ValueError(
            f"dataset {dataset!r}: the folder has no site; a site is a folder, or a file that ends in "
            f"{', '.join(ENDINGS)}"
        )
    return dict(sorted(found.items()))


def left_out(dataset: str) -> list[str]:
    """Names of files in the folder that are no site, though not hidden."""
    folder = Path(dataset.removeprefix(PREFIX)).expanduser()
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p.name for p in paths if not p.name.startswith(".") and _name(p) is None]


def check_sites(data: Data) -> None:
    """Check the keys of ``data`` that are for sites only, and those that sites exclude.

    Raises
    ------
    ValueError
        With the key and the remedy.
    """
    if not data.of_sites:
        for key in _ONLY_OF_SITES:
            if (value := getattr(data, key)) != type(data).model_fields[key].default:
                raise ValueError(
                    f"{kebab(key)} {value!r} is for data.dataset 'sites:FOLDER', and it is "
                    f"{data.dataset!r}; remove the key"
                )
        if data.standardize == "federated":
            raise ValueError(
                f"standardize 'federated' is for data.dataset 'sites:FOLDER', and it is "
                f"{data.dataset!r}; set it to true"
            )
        return
    for problem in _problems(data):
        raise ValueError(problem)


def _problems(data: Data) -> Iterator[str]:
    for name in data.sites:
        if not SITE_NAME.fullmatch(name):
            yield f"sites has the name {name!r}; use {_NAMING}"
    for key in ("sites", "classes"):
        values = getattr(data, key)
        if (again := next((v for v in values if values.count(v) > 1), None)) is not None:
            yield f"{key} has {again!r} twice; remove one"
    if data.clients != len(data.sites):
        yield (
            f"clients is {data.clients}, but there are {len(data.sites)} sites "
            f"({', '.join(data.sites)}); leave data.clients out"
        )
    if data.partition != "natural":
        yield f"partition {data.partition!r} divides one data set, and each site has its own; remove it"
    if data.examples_per_client:
        yield "examples-per-client draws from one data set, and each site has its own; remove it"
    if data.standardize is True:
        yield "standardize true needs all rows in one place; set it to 'federated'"
    if "median" in (data.fill, *data.fill_columns.values()):
        yield "fill 'median' needs all rows in one place; use 'mean', 'zero' or 'drop'"
    if data.test and not data.test.startswith("file:"):
        yield f"test must be file:PATH, got {data.test!r}"
    if data.args and not data.reader:
        yield f"args {data.args!r} are those of data.reader, which is empty; remove them"


def _name(path: Path, *, any_file: bool = False) -> str | None:
    """Name of the site that a path of the folder is; None if it is no site."""
    if path.name.startswith("."):
        return None
    if path.is_dir():
        return path.name
    end = next((end for end in ENDINGS if path.name.lower().endswith(end)), None)
    if end is None:
        return path.stem if any_file else None
    return path.name[: -len(end)]


def _check_name(name: str, path: Path, dataset: str) -> None:
    if not SITE_NAME.fullmatch(name):
        raise ValueError(
            f"dataset {dataset!r}: {path.name} would be the site {name!r}; rename it to {_NAMING}"
        )
