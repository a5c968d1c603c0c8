"""A site's examples in the form that the sites agreed on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from flsimulation.data.dataset import Column
from flsimulation.data.leaves import Leaves
from flsimulation.data.sites.agree import AgreedColumn, AgreedInput, Agreement
from flsimulation.data.sites.raw import Raw, RawColumn, named
from flsimulation.data.sites.site_labels import labels_of
from flsimulation.errors import DataError
from flsimulation.experiment.spec import Data


class Encoded(NamedTuple):
    """Inputs and targets of some examples."""

    x: Leaves
    y: torch.Tensor


def encoded(raw: Raw, agreement: Agreement, spec: Data) -> Encoded:
    """Encode a site's examples, or those of the test set.

    Raises
    ------
    DataError
        If they have another form than what was agreed, a category or class that nobody reported.
    """
    with named(raw.site, spec):
        return Encoded(_inputs(raw, agreement), _targets(raw, agreement, spec))


def placeholder(agreement: Agreement, examples: int = 2) -> Encoded:
    """Zeros of the agreed form, where the examples themselves are elsewhere."""
    width = sum(column.width for column in columns_of(agreement))
    tensors = {
        own.name: torch.zeros((examples, *own.shape), dtype=_DTYPES[own.dtype])
        for own in agreement.inputs
    }
    integers = agreement.task in ("classification", "segmentation", "language")
    kind = torch.int64 if integers else torch.float32
    x = _leaves(tensors) if tensors else torch.zeros(examples, width)
    return Encoded(x, torch.zeros((examples, *agreement.target), dtype=kind))


def columns_of(agreement: Agreement) -> tuple[Column, ...]:
    """Input columns of the agreed table; empty for other data."""
    return tuple(
        Column(own.name, "number")
        if own.is_number
        else Column(own.name, "category", 0, len(own.categories), own.categories)
        for own in agreement.columns
    )


_DTYPES = {"float32": torch.float32, "int64": torch.int64}


def _leaves(tensors: dict[str, torch.Tensor]) -> Leaves:
    return tensors[""] if list(tensors) == [""] else tensors


def _inputs(raw: Raw, agreement: Agreement) -> Leaves:
    if agreement.columns:
        own = {column.name: column for column in raw.columns}
        if lacking := [c.name for c in agreement.columns if c.name not in own]:
            raise DataError(f"it has no column {lacking[0]!r}; add it")
        blocks = [_block(own[column.name], column) for column in agreement.columns]
        return torch.from_numpy(np.concatenate(blocks, axis=1))
    tensors = {}
    for agreed in agreement.inputs:
        tensor = raw.tensors.get(agreed.name)
        if tensor is None or tuple(tensor.shape[1:]) != agreed.shape:
            found = "none" if tensor is None else list(tensor.shape[1:])
            raise DataError(
                f"its inputs{agreed.name and f' {agreed.name!r}'} have shape {found}, the sites agreed on "
                f"{list(agreed.shape)}; bring them to one form"
            )
        tensors[agreed.name] = _scaled(tensor, agreed)
    return _leaves(tensors)


def _block(column: RawColumn, agreed: AgreedColumn) -> np.ndarray:
    """Inputs of a column, float32 [n, width]."""
    if agreed.is_number != column.is_number:
        kind = "numbers" if agreed.is_number else "words"
        raise DataError(
            f"column {column.name!r} has no {kind}, which the sites agreed on; correct it"
        )
    if agreed.is_number:
        filled = np.where(np.isnan(column.cells), agreed.fill, column.cells)
        return np.asarray((filled - agreed.mean) / agreed.deviation, np.float32)[:, None]
    unknown = np.isin(column.cells, [*agreed.categories, ""], invert=True)
    if unknown.any():
        raise DataError(
            f"column {column.name!r} has {str(column.cells[unknown][0])!r}, which is none of the agreed "
            f"categories ({', '.join(agreed.categories)}); correct it, or list it in data.categories"
        )
    # an empty cell is none of them: zeros, because a mean of categories is none
    return np.asarray(column.cells[:, None] == np.array(agreed.categories)[None], np.float32)


def _scaled(tensor: torch.Tensor, agreed: AgreedInput) -> torch.Tensor:
    if not agreed.means:
        return tensor
    means, deviations = (
        torch.tensor(v, dtype=torch.float64) for v in (agreed.means, agreed.deviations)
    )
    return ((tensor.double() - means) / deviations).float()


def _targets(raw: Raw, agreement: Agreement, spec: Data) -> torch.Tensor:
    asked = spec.model_copy(update={"task": agreement.task})
    labels = labels_of(raw, asked)
    if labels.targets is not None:
        return labels.targets
    assert labels.names is not None  # noqa: S101 - one of the two
    numbers = {name: number for number, name in enumerate(agreement.classes)}
    unknown = np.isin(labels.names, list(numbers), invert=True)
    if unknown.any():
        raise DataError(
            f"{raw.about.label} has {str(labels.names[unknown][0])!r}, which is none of the agreed classes "
            f"({', '.join(agreement.classes)}); correct it, or list it in data.classes"
        )
    return torch.tensor([numbers[name] for name in labels.names.tolist()], dtype=torch.int64)
