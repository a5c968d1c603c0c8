"""What the sites agree on before training: a pure function of what each one reports."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from flsimulation.data.sites.alike import check_alike
from flsimulation.data.sites.moments import Reported, together
from flsimulation.data.sites.raw import rule_of
from flsimulation.data.sites.site_facts import ColumnFacts, InputFacts, Names, Shape, SiteFacts
from flsimulation.data.sites.site_labels import in_order
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


class AgreedColumn(Reported):
    """How a column of a table becomes inputs at every site."""

    name: str
    categories: Names = ()
    """In the order of the inputs; empty for numbers."""
    is_number: bool = True
    fill: float = 0.0
    """What replaces a missing number."""
    mean: float = 0.0
    """Subtracted from a number ..."""
    deviation: float = 1.0
    """... which is then divided by this."""


class AgreedInput(Reported):
    """The form of an array of inputs at every site."""

    name: str
    shape: Shape
    dtype: str
    means: tuple[float, ...] = ()
    """As `AgreedColumn.mean`, of each number of an example; empty where nothing is scaled."""
    deviations: tuple[float, ...] = ()


class SiteSize(Reported):
    """How much a site has."""

    site: str
    examples: int
    """0 of a site that was not connected when the others agreed."""
    histogram: tuple[int, ...] | None = None
    """Examples of each class, if the sites share them."""


class Agreement(Reported):
    """What holds at every site; the model is built from it, and each site encodes its data by it."""

    task: str
    target: Shape
    """Shape of one example's target."""
    classes: Names = ()
    columns: tuple[AgreedColumn, ...] = ()
    """Of tables; empty for other data."""
    inputs: tuple[AgreedInput, ...] = ()
    """Of other data."""
    largest_token: int | None = None
    largest_label: int | None = None
    means: tuple[float, ...] = ()
    """Of each target of a regression, over all sites."""
    deviations: tuple[float, ...] = ()
    sizes: Annotated[tuple[SiteSize, ...], Field(max_length=100_000)] = ()
    """Of each client, in their order; empty in what is sent to clients."""

    @property
    def examples(self) -> int:
        """Examples of all sites."""
        return sum(size.examples for size in self.sizes)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that was agreed."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def for_clients(self) -> str:
        """The agreement as JSON, without what single sites have."""
        return self.model_copy(update={"sizes": ()}).model_dump_json()


def agree(facts: Sequence[SiteFacts], spec: Data, sites: Sequence[str] | None = None) -> Agreement:
    """Compare what the sites report, and find what holds at all of them.

    Parameters
    ----------
    facts : sequence of SiteFacts
        Of each of the sites, in any order.
    spec : Data
        The experiment's section ``data``.
    sites : sequence of str, optional
        The sites that agree, in the order of ``data.sites``; by default all of these.

    Raises
    ------
    DataError
        In one sentence that names the site, what is different there, and the remedy.
    """
    ordered = _in_order(facts, spec.sites if sites is None else sites)
    check_alike(ordered, spec)
    first = ordered[0]
    classes = _classes(ordered, spec)
    targets = [together(own) for own in zip(*(f.targets for f in ordered), strict=True)]
    return Agreement(
        task=first.task,
        target=first.target,
        classes=classes,
        columns=tuple(
            _column([f.columns[i] for f in ordered], spec) for i in range(len(first.columns))
        ),
        inputs=tuple(_input([f.inputs[i] for f in ordered]) for i in range(len(first.inputs))),
        largest_token=_largest([i.largest for f in ordered for i in f.inputs]),
        largest_label=_largest([f.largest for f in ordered]),
        means=tuple(own.mean for own in targets),
        deviations=tuple(own.deviation for own in targets),
        sizes=sizes_of(ordered, classes, spec),
    )


def _in_order(facts: Sequence[SiteFacts], sites: Sequence[str]) -> list[SiteFacts]:
    """The facts in the order of the sites."""
    known = {own.site: own for own in facts}
    if len(known) != len(facts) or known.keys() != {*sites}:
        got = ", ".join(sorted(own.site for own in facts)) or "none"
        raise DataError(
            f"data.sites are {', '.join(sites)}, but facts are there of: {got}; name the sites "
            f"that take part"
        )
    return [known[site] for site in sites]


def _classes(facts: Sequence[SiteFacts], spec: Data) -> tuple[str, ...]:
    if spec.classes and facts[0].task != "regression":
        return tuple(spec.classes)
    every = [own.classes for own in facts]
    if len(set(every)) == 1:  # the order of a source that lists them
        return every[0]
    return in_order({name for own in every for name in own})


def _column(own: Sequence[ColumnFacts], spec: Data) -> AgreedColumn:
    name = own[0].name
    if own[0].kind == "category":
        found = sorted({category for facts in own for category in facts.categories})
        return AgreedColumn(
            name=name, categories=tuple(spec.categories.get(name, found)), is_number=False
        )
    moments = together(facts.moments for facts in own if facts.moments is not None)
    fill = moments.mean if rule_of(name, spec) == "mean" else 0.0
    if spec.standardize != "federated":
        return AgreedColumn(name=name, fill=fill)
    filled = moments.with_missing(sum(facts.missing for facts in own))
    return AgreedColumn(name=name, fill=fill, mean=filled.mean, deviation=filled.deviation)


def _input(own: Sequence[InputFacts]) -> AgreedInput:
    merged = [together(moments) for moments in zip(*(f.moments for f in own), strict=True)]
    return AgreedInput(
        name=own[0].name,
        shape=own[0].shape,
        dtype=own[0].dtype,
        means=tuple(moments.mean for moments in merged),
        deviations=tuple(moments.deviation for moments in merged),
    )


def _largest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def sizes_of(
    facts: Sequence[SiteFacts], classes: tuple[str, ...], spec: Data
) -> tuple[SiteSize, ...]:
    """The size of each of ``data.sites``, of which some may be absent."""
    known = {own.site: _size(own, classes) for own in facts}
    return tuple(known.get(site, SiteSize(site=site, examples=0)) for site in spec.sites)


def _size(own: SiteFacts, classes: tuple[str, ...]) -> SiteSize:
    if own.histogram is None:
        return SiteSize(site=own.site, examples=own.examples)
    counts = tuple(own.histogram.get(name, 0) for name in classes)
    return SiteSize(site=own.site, examples=own.examples, histogram=counts)
