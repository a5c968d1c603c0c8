"""Data sets of sites: all of a folder, one site alone, or none where only the model is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flsimulation.data import columns as cells
from flsimulation.data.dataset import Dataset
from flsimulation.data.leaves import Leaves, named
from flsimulation.data.refusal import refusal
from flsimulation.data.sites.agree import Agreement, agree
from flsimulation.data.sites.encoded import Encoded, columns_of, encoded, placeholder
from flsimulation.data.sites.raw import TEST, Raw, read_site
from flsimulation.data.sites.site_facts import SiteFacts, facts_of
from flsimulation.data.targets import shortened
from flsimulation.errors import DataError
from flsimulation.experiment.sites import left_out, site_paths
from flsimulation.experiment.spec import Data

_FEW = 8  # sites whose way of reading is noted


def load_sites(spec: Data) -> Dataset:
    """Read all sites of the folder, let them agree, and join them.

    Each site is read and encoded by itself, exactly as a client of a network does it.

    Raises
    ------
    DataError
        In one sentence, if a site cannot be used, or differs from the others.
    """
    raws = [read_site(site, path, spec) for site, path in paths_of(spec).items()]
    agreement = agree([facts_of(raw, spec) for raw in raws], spec)
    parts = [encoded(raw, agreement, spec) for raw in raws]
    owners = np.repeat(spec.sites, [len(part.y) for part in parts])
    dataset = _dataset(spec, agreement, _joined(parts), owners, _test(spec, agreement))
    return dataset.with_notes(_reading_notes(raws, spec))


def load_site(spec: Data, agreement: Agreement, site: str, path: Path) -> Dataset:
    """Read one site and encode it as agreed; nothing of the other sites is here."""
    own = encoded(read_site(site, path, spec), agreement, spec)
    return _dataset(spec, agreement, own, np.repeat([site], len(own.y)), None)


def load_no_site(spec: Data, agreement: Agreement) -> Dataset:
    """Zeros of the agreed form in place of the examples, and the test set if there is one."""
    zeros = placeholder(agreement)
    owners = np.repeat([""], len(zeros.y))
    return _dataset(spec, agreement, zeros, owners, _test(spec, agreement), is_placeholder=True)


def read_facts(spec: Data, site: str, path: Path) -> SiteFacts:
    """Read one site, and return what it reports. Raises `DataError`."""
    return facts_of(read_site(site, path, spec), spec)


def paths_of(spec: Data) -> dict[str, Path]:
    """Path of each site of ``data.sites``, in their order. Raises `DataError`."""
    try:
        found = site_paths(spec.dataset, any_file=bool(spec.reader))
    except ValueError as error:
        raise refusal(spec, str(error).partition(": ")[2]) from None
    for site in spec.sites:
        if site not in found:
            raise refusal(
                spec, f"it has no site {site!r}, only {', '.join(found)}; correct data.sites"
            )
    return {site: found[site] for site in spec.sites}


def _test(spec: Data, agreement: Agreement) -> Encoded | None:
    if not spec.test:
        return None
    path = Path(spec.test.removeprefix("file:")).expanduser()
    if not path.exists():
        raise DataError(
            f"data.test {spec.test!r}: there is no such file or folder; correct the path"
        )
    return encoded(read_site(TEST, path, spec), agreement, spec)


def _dataset(
    spec: Data,
    agreement: Agreement,
    train: Encoded,
    owners: np.ndarray,
    test: Encoded | None,
    *,
    is_placeholder: bool = False,
) -> Dataset:
    none = placeholder(agreement, 0)
    return Dataset(
        spec.dataset,
        train.x,
        train.y,
        (test or none).x,
        (test or none).y,
        agreement.classes,
        owners,
        agreement.task,
        columns_of(agreement),
        tuple(_notes(agreement, spec)),
        agreed=agreement,
        has_test=test is not None,
        is_placeholder=is_placeholder,
    )


def _joined(parts: Sequence[Encoded]) -> Encoded:
    y = torch.cat([part.y for part in parts])
    if isinstance(parts[0].x, torch.Tensor):
        return Encoded(torch.cat([x for part in parts for _, x in named(part.x)]), y)
    x: Leaves = {
        name: torch.cat([dict(named(part.x))[name] for part in parts]) for name in parts[0].x
    }
    return Encoded(x, y)


def _notes(agreement: Agreement, spec: Data) -> list[str]:
    """Lines for people; the same in one process and on a network's server."""
    notes = []
    if there := [size for size in agreement.sizes if size.examples]:
        sizes, names = [s.examples for s in there], shortened(tuple(s.site for s in there))
        notes.append(f"sites: {len(sizes)} of {min(sizes)} to {max(sizes)} examples: {names}")
    if absent := tuple(size.site for size in agreement.sizes if not size.examples):
        notes.append(f"not connected: {shortened(absent)}; each may join (round.late)")
    if agreement.columns:
        categories = {own.name: own.categories for own in agreement.columns}
        notes.append(f"inputs: {cells.kinds(columns_of(agreement), categories)}")
    if agreement.classes:
        whose = "data.classes" if spec.classes else "all that the sites have"
        notes.append(
            f"labels: {agreement.task}, {len(agreement.classes)} classes {shortened(agreement.classes)} ({whose})"
        )
    else:
        notes.append(f"labels: {agreement.task}")
    notes.append(f"each site reports {', '.join(revealed(agreement, spec))}")
    if not spec.test:
        notes.append("no test set (data.test): the clients' held-out parts evaluate the model")
    return notes


def revealed(agreement: Agreement, spec: Data) -> list[str]:
    """What each site reports of its data before training, in words."""
    parts = ["its number of examples"]
    if agreement.columns:
        parts.append("its columns with their missing cells")
    parts += ["shape and type of its inputs"] if agreement.inputs else []
    if any(not own.is_number and own.name not in spec.categories for own in agreement.columns):
        parts.append("the categories of its text columns")
    if agreement.classes and not spec.classes:
        parts.append("the names of its classes")
    if spec.standardize or "mean" in (spec.fill, *spec.fill_columns.values()):
        parts.append("mean and variance of its numeric columns")
    if agreement.task == "regression":
        parts.append("mean and variance of its targets")
    if agreement.largest_token is not None or agreement.largest_label is not None:
        parts.append("its largest token or label")
    if spec.share_histogram:
        parts.append("its number of examples of each class")
    return parts


def _reading_notes(raws: Sequence[Raw], spec: Data) -> tuple[str, ...]:
    unused = left_out(spec.dataset) if not spec.reader else []
    notes = [f"no sites, left out: {', '.join(unused)}"] if unused else []
    if len(raws) <= _FEW:
        notes += [f"{raw.site}: {note}" for raw in raws for note in raw.notes]
    return tuple(notes)
