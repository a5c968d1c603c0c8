"""The form in which a module's steps receive a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from flsimulation.data.leaves import Leaves


@dataclass(frozen=True)
class Form:
    """How inputs and labels become a module's batch."""

    kind: Literal["pair", "dict"] = "pair"
    """As ``data.batch``."""
    inputs: str = "image"
    """Name of the only input in a dict."""
    labels: str = "label"
    """Name of the only labels in a dict."""

    def batch(self, x: Leaves, y: Leaves) -> Any:
        """What a step receives: ``(x, y)``, or a new dict of all tensors by name."""
        if self.kind == "pair":
            return x, y
        named = x if isinstance(x, dict) else {self.inputs: x}
        return {**named, **(y if isinstance(y, dict) else {self.labels: y})}


PAIR = Form()


def examples_of(batch: Any) -> int:
    """Number of examples of a batch of any form: the length of its last tensor."""
    if type(batch) is tuple and type(batch[-1]) is Tensor:  # a pair, sooner
        return int(batch[-1].shape[0])
    while not isinstance(batch, Tensor):
        batch = [*batch.values()][-1] if isinstance(batch, Mapping) else batch[-1]
    return len(batch)


def moved(batch: Any, device: Any) -> Any:
    """The batch with its tensors on the device, in the same form."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    return tuple(moved(value, device) for value in batch)
