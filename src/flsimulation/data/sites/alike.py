"""Refuses a site whose data does not mean what the others' does, by name and with the remedy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from flsimulation.data.refusal import counted
from flsimulation.data.sites.site_facts import SiteFacts
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


def check_alike(facts: Sequence[SiteFacts], spec: Data) -> None:
    """Raise `DataError` for the first site that differs from the others.

    Of two forms, that of more sites counts as the one that is meant, of as many, that of the first.
    """
    for own in facts:
        if own.examples < spec.min_examples:
            raise DataError(
                f"site {own.site} has {counted(own.examples, 'example')}, but data.min-examples is "
                f"{spec.min_examples}; lower it (2 at least), or leave the site out"
            )
    usual, odd = _divided(facts, lambda own: bool(own.columns))
    if odd is not None:
        kinds = {True: "a table", False: "arrays or images"}
        raise DataError(
            f"site {odd.site} has {kinds[bool(odd.columns)]}, but {usual.site} {kinds[bool(usual.columns)]}; "
            f"use one form at all sites"
        )
    _check_columns(facts)
    _check_kinds(facts)
    _check_constant(facts, spec)
    _check_inputs(facts)
    _check_task(facts)
    _check_lengths(facts)
    if facts[0].task != "classification":
        _check_order(facts)
    elif not spec.classes:
        _check_classes(facts)


def _divided(
    facts: Sequence[SiteFacts], form: Callable[[SiteFacts], Any]
) -> tuple[SiteFacts, SiteFacts | None]:
    """A site with the usual form, and one with another; None if all have one."""
    forms = [form(own) for own in facts]
    counts = Counter(forms)
    usual = max(forms, key=lambda own: counts[own])  # the first of the most frequent
    odd = next((own for own in facts if form(own) != usual), None)
    return facts[forms.index(usual)], odd


def _check_columns(facts: Sequence[SiteFacts]) -> None:
    usual, odd = _divided(facts, lambda own: tuple(column.name for column in own.columns))
    if odd is None:
        return
    names, others = ([column.name for column in own.columns] for own in (usual, odd))
    lacking = [name for name in names if name not in others]
    further = [name for name in others if name not in names]
    common = _setting([name for name in names if name in others])
    if lacking:
        also = f" (but has {further[0]!r})" if further else ""
        raise DataError(
            f"site {odd.site} has no column {lacking[0]!r}{also}, which {usual.site} has; add or rename it "
            f"there, or set {common}"
        )
    if further:
        raise DataError(
            f"site {odd.site} has the column {further[0]!r}, which {usual.site} does not have; remove it "
            f"there, or set {common}"
        )
    place = next(i for i, name in enumerate(names) if others[i] != name)
    raise DataError(
        f"site {odd.site} has its columns in another order, {others[place]!r} where {usual.site} has "
        f"{names[place]!r}; reorder them there, or set {common}"
    )


def _setting(names: Sequence[str]) -> str:
    listed = names if len(names) <= 30 else [*names[:3], "..."]
    return f"data.input-columns = {json.dumps(list(listed), ensure_ascii=False)}"


def _check_kinds(facts: Sequence[SiteFacts]) -> None:
    for place, column in enumerate(facts[0].columns):
        usual, odd = _divided(facts, lambda own, at=place: own.columns[at].kind)  # type: ignore[misc]
        if odd is None:
            continue
        kinds = {"number": "numbers", "category": "words"}
        raise DataError(
            f"site {odd.site} has {kinds[odd.columns[place].kind]} in column {column.name!r}, but "
            f"{usual.site} has {kinds[usual.columns[place].kind]}; correct it there, or list its "
            f"categories in data.categories"
        )


def _check_constant(facts: Sequence[SiteFacts], spec: Data) -> None:
    for own in facts if spec.constant == "refuse" else ():
        constant = [column.name for column in own.columns if column.constant]
        if constant:
            kept = [column.name for column in own.columns if column.name not in constant]
            raise DataError(
                f"site {own.site} has one value only in column {constant[0]!r}; correct it there, set "
                f"{_setting(kept)}, or data.constant = 'accept' if that is so"
            )


def _check_inputs(facts: Sequence[SiteFacts]) -> None:
    usual, odd = _divided(facts, _forms)
    if odd is None:
        return
    image = max((len(own.shape) for own in odd.inputs), default=0) == 3
    remedy = "set data.image-size and data.image-mode" if image else "bring them to one form"
    raise DataError(
        f"site {odd.site} has inputs of the form {_described(odd)}, but {usual.site} {_described(usual)}; "
        f"{remedy}"
    )


def _forms(own: SiteFacts) -> tuple[tuple[Any, ...], ...]:
    return tuple((one.name, one.shape, one.dtype) for one in own.inputs)


def _described(own: SiteFacts) -> str:
    return ", ".join(f"{one.name} {list(one.shape)} {one.dtype}".strip() for one in own.inputs)


def _check_task(facts: Sequence[SiteFacts]) -> None:
    usual, odd = _divided(facts, lambda own: own.task)
    if odd is not None:
        raise DataError(
            f"site {odd.site} has labels of a {odd.task}, but {usual.site} of a {usual.task}; correct them "
            f"there, or set data.task"
        )
    usual, odd = _divided(facts, lambda own: own.target)
    if odd is not None:
        raise DataError(
            f"site {odd.site} has targets of shape {list(odd.target)}, but {usual.site} of "
            f"{list(usual.target)}; use one shape"
        )


def _check_lengths(facts: Sequence[SiteFacts]) -> None:
    """Refuse reports of another form: no program of this package makes them."""
    usual, odd = _divided(facts, _lengths)
    if odd is not None:
        raise DataError(
            f"site {odd.site} reports moments of {_lengths(odd)} numbers, but {usual.site} of "
            f"{_lengths(usual)}; use one version of flsimulation"
        )


def _lengths(own: SiteFacts) -> tuple[int, ...]:
    return len(own.targets), *(len(one.moments) for one in own.inputs)


def _check_order(facts: Sequence[SiteFacts]) -> None:
    """Refuse classes in another order, where labels are the classes' numbers."""
    longest = max(facts, key=lambda own: len(own.classes))
    for own in facts:
        if own.classes != longest.classes[: len(own.classes)]:
            raise DataError(
                f"site {own.site} has the classes {', '.join(own.classes[:5])}, in this order, but "
                f"{longest.site} {', '.join(longest.classes[:5])}; number them alike"
            )


def _check_classes(facts: Sequence[SiteFacts]) -> None:
    """Refuse a class of one site alone where another class is missing that all others have.

    The two are most likely one class under two names, such as ``healthy`` and ``well``.
    """
    for own in facts:
        others = [set(other.classes) for other in facts if other is not own]
        if not others:
            return
        alone = [name for name in own.classes if not any(name in other for other in others)]
        lacking = sorted(set.intersection(*others) - set(own.classes))
        if alone and lacking:
            raise DataError(
                f"site {own.site} has the class {alone[0]!r}, which no other site has, and lacks "
                f"{lacking[0]!r}, which all others have; rename it there, or list all classes in "
                f"data.classes"
            )
