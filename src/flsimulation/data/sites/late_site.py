"""Whether a site fits what other sites agreed on before it was there."""

from __future__ import annotations

from collections.abc import Iterator

from flsimulation.data.sites.agree import Agreement
from flsimulation.data.sites.alike import check_alike
from flsimulation.data.sites.site_facts import ColumnFacts, InputFacts, SiteFacts
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


def check_fits(own: SiteFacts, agreement: Agreement, spec: Data) -> None:
    """Compare a site with an agreement, which stays as it is.

    Parameters
    ----------
    own : SiteFacts
        What the site reports.
    agreement : Agreement
        Of at least one other site.
    spec : Data
        The experiment's section ``data``.

    Raises
    ------
    DataError
        In one sentence that names the site, what is different there, and the remedy: as before the
        first round, or because it has what nobody had when the others agreed.
    """
    if not spec.classes and own.task == agreement.task:
        for name in own.classes:
            if name not in agreement.classes:
                raise _is_new(
                    own, f"the class {name!r}", agreement.classes, "list it in data.classes"
                )
    check_alike([_as_facts(agreement, spec), own], spec)
    for what, agreed, listing in _further(own, agreement):
        raise _is_new(own, what, agreed, listing)


def _as_facts(agreement: Agreement, spec: Data) -> SiteFacts:
    """What the first of the sites that agreed has reported, as far as sites are compared."""
    first = next(size for size in agreement.sizes if size.examples)
    return SiteFacts(
        site=first.site,
        examples=max(first.examples, spec.min_examples),
        columns=tuple(
            ColumnFacts(name=column.name, kind="number" if column.is_number else "category")
            for column in agreement.columns
        ),
        inputs=tuple(
            InputFacts.model_validate({"name": one.name, "shape": one.shape, "dtype": one.dtype})
            for one in agreement.inputs
        ),
        task=agreement.task,
        target=agreement.target,
        classes=() if spec.classes else agreement.classes,
    )


def _further(own: SiteFacts, agreement: Agreement) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """What only this site has: in words, what was agreed, and the key that would list it."""
    for column, agreed in zip(own.columns, agreement.columns, strict=True):
        for name in column.categories:
            if name not in agreed.categories:
                what = f"{name!r} in column {column.name!r}"
                yield what, agreed.categories, "list it in data.categories"
    tokens = [one.largest for one in own.inputs if one.largest is not None]
    for kind, values, largest in (
        ("token", tokens, agreement.largest_token),
        ("label", [own.largest] if own.largest is not None else [], agreement.largest_label),
    ):
        if largest is not None and values and max(values) > largest:
            yield f"the {kind} {max(values)}", (f"0 to {largest}",), "begin with this site"


def _is_new(own: SiteFacts, what: str, agreed: tuple[str, ...], listing: str) -> DataError:
    known = ", ".join(agreed[:20]) + (", ..." if len(agreed) > 20 else "")
    return DataError(
        f"site {own.site} has {what}, which is none of those that the sites agreed on before the first "
        f"round ({known}); correct it there, or {listing} and start a new run"
    )
