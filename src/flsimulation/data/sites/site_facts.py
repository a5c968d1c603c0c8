"""What one site reports of its data before training: enough to agree, and nothing else.

The sizes of all texts and lists are bounded, because the server reads what a client sends.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError

from flsimulation.data import columns as cells
from flsimulation.data.sites.moments import Moments, Reported
from flsimulation.data.sites.raw import Raw, RawColumn, named, rule_of
from flsimulation.data.sites.site_labels import Labels, labels_of
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be printable, in one line")
    return text


Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
Names = Annotated[tuple[Name, ...], Field(max_length=10_000)]
Shape = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=8)]


class ColumnFacts(Reported):
    """An input column of a site's table."""

    name: Name
    kind: Literal["number", "category"]
    missing: int = Field(default=0, ge=0, lt=2**31)
    """Missing cells that the agreement fills."""
    constant: bool = False
    """Whether all its cells are equal."""
    categories: Names = ()
    """Its categories, unless ``data.categories`` lists them."""
    moments: Moments | None = None
    """Of the present numbers, where ``data.fill`` or ``data.standardize`` needs them."""


class InputFacts(Reported):
    """An array of inputs of a site."""

    name: Name
    """Empty for the only one."""
    shape: Shape
    """Of one example."""
    dtype: Literal["float32", "int64"]
    largest: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """The largest token, of integers."""
    moments: Annotated[tuple[Moments, ...], Field(max_length=100_000)] = ()
    """Of each number of an example, where ``data.standardize`` needs them."""


class SiteFacts(Reported):
    """What one site reports."""

    site: Name
    examples: int = Field(ge=1, lt=2**31)
    columns: Annotated[tuple[ColumnFacts, ...], Field(max_length=10_000)] = ()
    """Of a table, in the order of the file; empty for other data."""
    inputs: Annotated[tuple[InputFacts, ...], Field(max_length=100)] = ()
    """Of other data."""
    task: Annotated[
        str, Field(pattern="^(classification|regression|multilabel|segmentation|language)$")
    ]
    target: Shape
    """Shape of one example's target."""
    classes: Names = ()
    """Class names of the site, unless ``data.classes`` lists them."""
    largest: Annotated[int, Field(lt=2**31)] | None = None
    """The largest label of segmentation and language."""
    targets: Annotated[tuple[Moments, ...], Field(max_length=100_000)] = ()
    """Of each target of a regression."""
    histogram: (
        Annotated[dict[Name, Annotated[int, Field(ge=0)]], Field(max_length=10_000)] | None
    ) = None
    """Number of examples of each class, if ``data.share-histogram`` is set."""


def facts_of(raw: Raw, spec: Data) -> SiteFacts:
    """What a site reports of its examples.

    Raises
    ------
    DataError
        In one line that names the site, if they cannot be used whatever the others have.
    """
    with named(raw.site, spec):
        try:
            return _facts(raw, labels_of(raw, spec), spec)
        except ValidationError as wrong:
            item = wrong.errors()[0]
            raise DataError(
                f"its {'.'.join(map(str, item['loc']))} cannot be reported, got {item['input']!r:.80}: "
                f"{item['msg'].removeprefix('Value error, ')}; shorten or correct it"
            ) from None


def _facts(raw: Raw, labels: Labels, spec: Data) -> SiteFacts:
    target = () if labels.targets is None else tuple(labels.targets.shape[1:])
    return SiteFacts(
        site=raw.site,
        examples=len(raw.labels),
        columns=_columns(raw, spec),
        inputs=_inputs(raw, spec),
        task=labels.task,
        target=target,
        classes=() if spec.classes else labels.classes,
        largest=_largest(labels),
        targets=_target_moments(labels),
        histogram=_histogram(labels) if spec.share_histogram else None,
    )


def _columns(raw: Raw, spec: Data) -> tuple[ColumnFacts, ...]:
    texts = {c.name: c for c in raw.columns if not c.is_number}
    known, unusable = {}, []
    for name, column in texts.items():
        try:
            known[name] = _categories(column, spec)
        except cells.UnusableColumnError as error:
            unusable.append(error)
    if unusable:
        raise cells.unusable(unusable, [c.name for c in raw.columns], spec) from None
    return tuple(_column(column, known.get(column.name, ()), spec) for column in raw.columns)


def _categories(column: RawColumn, spec: Data) -> tuple[str, ...]:
    if column.name not in spec.categories:
        return cells.categories(cells.Text(column.cells, column.name, "its table"), spec)
    listed = spec.categories[column.name]
    unknown = np.isin(column.cells, [*listed, ""], invert=True)
    if unknown.any():
        raise DataError(
            f"column {column.name!r} has {str(column.cells[unknown][0])!r}, which is none of "
            f"data.categories ({', '.join(listed)}); correct it there, or add it"
        )
    return ()


def _column(column: RawColumn, categories: tuple[str, ...], spec: Data) -> ColumnFacts:
    present = column.cells[~column.missing]
    if not len(present):
        raise DataError(
            f"column {column.name!r} is empty; leave it out at all sites by data.input-columns"
        )
    measured = column.is_number and (
        spec.standardize == "federated" or rule_of(column.name, spec) == "mean"
    )
    gaps = not column.is_number and bool(column.missing.any())  # a category more, so to speak
    return ColumnFacts(
        name=column.name,
        kind="number" if column.is_number else "category",
        missing=int(column.missing.sum()),
        constant=bool((present == present[0]).all()) and len(present) > 1 and not gaps,
        categories=categories,
        moments=Moments.of(column.cells) if measured else None,
    )


def _inputs(raw: Raw, spec: Data) -> tuple[InputFacts, ...]:
    found = []
    for name, tensor in sorted(raw.tensors.items()):
        integers = not tensor.is_floating_point()
        moments: tuple[Moments, ...] = ()
        if spec.standardize == "federated":
            if integers or tensor.ndim != 2:
                raise DataError(
                    f"data.standardize scales columns of numbers, but the inputs are "
                    f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape[1:])}; remove it"
                )
            moments = tuple(Moments.of(column) for column in tensor.double().numpy().T)
        found.append(
            InputFacts(
                name=name,
                shape=tuple(tensor.shape[1:]),
                dtype="int64" if integers else "float32",
                largest=int(tensor.max()) if integers else None,
                moments=moments,
            )
        )
    return tuple(found)


def _largest(labels: Labels) -> int | None:
    if labels.task not in ("segmentation", "language") or labels.targets is None:
        return None
    return int(labels.targets.max())


def _target_moments(labels: Labels) -> tuple[Moments, ...]:
    if labels.task != "regression" or labels.targets is None:
        return ()
    flat = labels.targets.double().reshape(len(labels.targets), -1).numpy()
    return tuple(Moments.of(column) for column in flat.T)


def _histogram(labels: Labels) -> dict[str, int] | None:
    if labels.names is None:
        return None
    names, counts = np.unique(labels.names, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))
