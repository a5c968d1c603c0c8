"""How many examples an evaluation may take at once, from the memory that its operations need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flsimulation.training.alone import detached, evaluation_step, take, unnoticed

_BUDGET = 256 * 2**20  # bytes of a batch's inputs and of what its step holds at a time
_MOST = 1000  # examples: larger batches are no faster on a CPU


def examples_within_budget(
    module: pl.LightningModule, batch: Any, otherwise: int, *, times: int = 1
) -> int:
    """Examples of an evaluation's batch, as many as a fixed budget of memory allows.

    The bytes that operations hold are counted, once, on a small batch. So the number is the same in
    every process and on every machine that evaluates on the same kind of device.

    Parameters
    ----------
    module : LightningModule
        The model; not changed.
    batch : tensors in any form
        A few examples, as the module's evaluation step gets them; each tensor [n, ...].
    otherwise : int
        The number where neither the step nor the forward pass works without a Trainer.
    times : int
        Times a CPU's budget, and a CPU's most examples.
    """
    step = evaluation_step(module)
    if step is None:
        return times * _MOST
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    peak = _peak(module, lambda copied: take(copied, step, batch))
    if peak is None:
        peak = _peak(module, lambda copied: copied(tensors[0]))
    if peak is None:
        return min(otherwise, times * _MOST)
    each = -(-(peak + sum(tensor.nbytes for tensor in tensors)) // len(tensors[0]))
    return max(1, min(times * _BUDGET // each, times * _MOST))


def _peak(module: pl.LightningModule, call: Callable[[pl.LightningModule], Any]) -> int | None:
    """Most bytes that the operations of a call of a copy hold at a time; None if it raises."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation, with its parts out of sight
    try:
        copied = detached(module).eval()
        with unnoticed(), torch.inference_mode(), _Held() as held:
            call(copied)
    except (Exception, SystemExit):  # a user's step may need what only a Trainer has
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(held.peak)


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations inside the block made and that still exist."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for leaf in made:
            if (storage := _storage(leaf)) not in given:  # no view, and nothing done in place
                self._held[storage] = leaf.untyped_storage().nbytes()
        self._held = {
            storage: size
            for storage, size in self._held.items()
            if not storage.expired()  # type: ignore[no-untyped-call]
        }
        self.peak = max(self.peak, sum(self._held.values()))
        return result


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
