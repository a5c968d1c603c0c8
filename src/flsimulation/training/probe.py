"""One step of a module on a few examples, without a Trainer: does it fit the data?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from flsimulation.data.leaves import Leaves, examples, leaves
from flsimulation.data.task import IGNORED
from flsimulation.errors import describe_error
from flsimulation.training.alone import detached, take, unnoticed
from flsimulation.training.mismatches import broadcast, described, of_layer, of_loss
from flsimulation.training.stacked.eligible import overridden
from flsimulation.training.watch import Watch

_BEFORE = {
    *("setup", "prepare_data", "configure_model", "configure_sharded_model", "configure_callbacks"),
    *("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer"),
    *("backward", "train", "eval", "to", "load_state_dict"),
}  # what Lightning calls before a step, and may change its batch or the module
_FEW = 2  # examples: as many as nothing but practice has
_INDEX = re.compile("out of (range|bounds)|Class values must be|should be between 0 and 1")
"""What PyTorch says on the CPU where a GPU stops with a "device-side assert"."""
_LARGEST = 50_000_000  # parameters of a model that is not worth a copy for this


class Finding(NamedTuple):
    """What a step on a few examples showed."""

    text: str
    """One line: what does not fit, and the remedy."""
    certain: bool
    """Whether every client fails for it; otherwise it trains, but not as intended."""
    is_index: bool = False
    """Whether a label or a token is out of range: an error on the CPU, but on a GPU the end of the
    process."""


def is_cheap(module: pl.LightningModule) -> bool:
    """Whether the module is small enough to be copied for a step."""
    return sum(parameter.numel() for parameter in module.parameters()) <= _LARGEST


def is_whole(module: pl.LightningModule) -> bool:
    """Whether a step without a Trainer is what the module does in a fit."""
    own = overridden(type(module))
    return not (_BEFORE & own) and not any(name.endswith("_start") for name in own)


def few(x: Leaves, y: Leaves, indices: np.ndarray | None = None) -> np.ndarray:
    """Indices of a few examples, those with the most extreme labels and tokens among them.

    Parameters
    ----------
    x, y : Tensor or dict of Tensor
        Inputs and targets of the data set, [n, ...].
    indices : int64 [m], optional
        Examples to choose from; by default all.
    """
    count = examples(x) if indices is None else len(indices)
    found = list[int]()
    for tensor in (*leaves(y), *leaves(x)):
        if tensor.dtype not in (torch.int32, torch.int64) or not count:
            continue
        own = tensor if indices is None else tensor[torch.from_numpy(indices)]
        own = own.reshape(count, -1)
        least = own.amin(1)
        is_low = int(least.min()) < 0 and int(least.min()) != IGNORED
        found.append(int(least.argmin() if is_low else own.amax(1).argmax()))
    found = list(dict.fromkeys(found))
    chosen = list(dict.fromkeys([*found, *range(count)[:_FEW]]))[: max(_FEW, len(found))]
    places = np.array(sorted(chosen), np.int64)
    return places if indices is None else indices[places]


def tried(module: pl.LightningModule, step: str, batch: Any) -> Finding | None:
    """What is wrong with a step for a batch; None if nothing is, or if it is not known.

    Parameters
    ----------
    module : LightningModule
        The model; not changed.
    step : str
        Name of the step: ``training_step`` or that of an evaluation.
    batch : tensors in any form
        A few examples.
    """
    training = step == "training_step"
    try:
        copied = detached(module).train(training)
        with unnoticed(), torch.set_grad_enabled(training), Watch(copied) as watch:
            return _found(copied, step, batch, watch)
    except (Exception, SystemExit):  # a user's module may do anything when it is copied
        return None


def _found(module: pl.LightningModule, step: str, batch: Any, watch: Watch) -> Finding | None:
    try:
        result = take(module, step, batch)
        if step == "training_step" and module.automatic_optimization:
            if (wrong := _wrong_result(result, len(_tensors(batch)[0]))) is not None:
                return Finding(f"{step} {wrong}", certain=True)
            _derive(result, watch)
    except Exception as error:  # a user's step may do anything
        is_index = _INDEX.search(str(error)) is not None
        text = of_layer(watch, _tensors(batch), error) or of_loss(watch, error)
        if text is None and is_index:
            text = (
                f"{step} fails for a label or a token ({describe_error(error)}); correct its range"
            )
            return Finding(text, certain=False, is_index=True)
        return None if text is None else Finding(text, certain=True, is_index=is_index)
    text = broadcast(watch)
    return None if text is None else Finding(text, certain=False)


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def _wrong_result(result: Any, count: int) -> str | None:
    """What Lightning would refuse in a training step's result; None would skip the batch."""
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if isinstance(result, Mapping) and loss is None:
        return "returns a dict without 'loss'; add the loss under this key"
    if loss is None:
        return None
    if not isinstance(loss, Tensor):
        return f"returns a {type(loss).__name__}; return the loss as a tensor"
    if loss.numel() != 1:
        return (
            f"returns a loss {described(loss, count)}; return one number, for example loss.mean()"
        )
    return None


def _derive(result: Any, watch: Watch) -> None:
    """Derive the loss: for labels of another type than the output it is this that fails."""
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        own = (loss for loss in watch.losses if loss.output.dtype != loss.labels.dtype)
        watch.refused, watch.refusal = next(own, None), error
        raise
