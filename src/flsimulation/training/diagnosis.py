"""Why a client diverged: its data, and its steps repeated without a Trainer, with a watch on layers."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from flsimulation import seeds
from flsimulation.data.dataset import Column
from flsimulation.experiment.spec import Train
from flsimulation.training.alone import detached, take, unnoticed
from flsimulation.training.batches import Batches
from flsimulation.training.jobs import Job, State
from flsimulation.training.stacked.eligible import optimization
from flsimulation.training.trainers import takes_gpu
from flsimulation.training.watch import Watch

_STEPS = 200  # at most, that are repeated
_HUGE = 1000.0  # numbers from here on are for most learning rates too large as they are
_RATES = ("learning_rate", "lr")


class _Found(NamedTuple):
    """The first that was not finite."""

    what: str
    """As a sentence."""
    step: int
    """From 1 on."""
    largest: float
    """Absolute value among the weights that the client received."""


def why_diverged(
    module: pl.LightningModule,
    model: State,
    make_job: Callable[[], Job],
    spec: Train,
    columns: Sequence[Column] = (),
) -> str:
    """What a diverged client's numbers say, and the remedy; in one line.

    Parameters
    ----------
    module : LightningModule
        The module; not changed.
    model : dict of Tensor
        The global model that the client received.
    make_job : callable
        Returns the client's job, as before its fit.
    spec : Train
        How it trained.
    columns : sequence of Column
        Of the inputs, if they are a table's.
    """
    rate = _rate(module)
    x, y = (_Numbers.of(make_job().batches, place) for place in (0, -1))
    for name, own in (("inputs", x), ("labels", y)):
        if own.wrong is not None:
            place = _place(own.at, columns) if name == "inputs" else ""
            return f"its {name} hold {own.wrong}{place}; correct the data set"
    found = _repeated(module, model, make_job(), spec)
    told = f"{found.what}; " if found is not None else ""
    if found is None and spec.precision.startswith("16"):
        return (
            "its steps stay finite in float32, while float16 ends at 65,504; set "
            "train.precision = 'bf16-mixed' or '32-true'"
        )
    if y.largest >= _HUGE and not y.whole:
        return f"{told}labels reach {y.largest:,.6g}: scale them, or lower {rate}"
    if x.largest >= _HUGE and not x.whole:
        place = _place(x.at, columns)
        return f"{told}inputs reach {x.largest:,.6g}{place}: scale them, or lower {rate}"
    sizes = f"inputs and labels are finite (inputs up to {x.largest:,.4g})"
    if found is None:
        return f"{sizes}; where it began is not known; lower {rate}"
    if found.step == 1 and found.largest < _HUGE:
        return f"{told}{sizes}, weights too; look for a division by 0, or log or sqrt of 0"
    return f"{told}{sizes}; lower {rate}"


def _rate(module: pl.LightningModule) -> str:
    """The learning rate, with its key if the module's class takes it, and its value if known."""
    taken = inspect.signature(type(module)).parameters
    key = next((f"model.args.{name}" for name in _RATES if name in taken), "the learning rate")
    try:
        with unnoticed():
            optimizer, _ = optimization(detached(module))
    except Exception:  # a user's method may need a Trainer
        return key
    return f"{key} ({float(optimizer.param_groups[0]['lr']):g})"


class _Numbers(NamedTuple):
    """What one tensor of all batches holds."""

    largest: float = 0.0
    """Absolute value."""
    at: tuple[int, ...] = ()
    """Where it, or what is not finite, is in an example."""
    wrong: str | None = None
    """``nan`` or ``inf``, if it is there."""
    whole: bool = False
    """Whether all are of an integer type."""

    @classmethod
    def of(cls, batches: Batches, place: int) -> _Numbers:
        """Of the first or the last tensor of each batch."""
        found = cls()
        for batch in batches:
            leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
            own = cls._in(leaves[place])
            if own.wrong is not None:
                return own
            found = max(found, own, key=lambda numbers: numbers.largest)
        return found

    @classmethod
    def _in(cls, tensor: Tensor) -> _Numbers:
        if not tensor.numel() or tensor.is_complex():
            return cls()
        sizes = tensor.detach().abs().double()
        wrong = ~sizes.isfinite()
        index = int((wrong.double() if bool(wrong.any()) else sizes).argmax())
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), tensor.shape))[1:]
        value = float(tensor.reshape(-1)[index])
        if bool(wrong.any()):
            return cls(at=at, wrong=str(value))
        return cls(abs(value), at, None, not tensor.is_floating_point())


def _place(at: tuple[int, ...], columns: Sequence[Column]) -> str:
    """Where in an example a number is: `` in column 'income'``."""
    if len(at) != 1:
        return f" at {list(at)}" if at else ""
    ends = itertools.accumulate(column.width for column in columns)
    name = next((c.name for c, end in zip(columns, ends, strict=True) if at[0] < end), None)
    return f" in column {name!r}" if name is not None else f" at index {at[0]}"


def _repeated(module: pl.LightningModule, model: State, job: Job, spec: Train) -> _Found | None:
    """Repeat the client's steps until something is not finite; None if nothing is, or they raise."""
    device = torch.device("cuda" if takes_gpu(spec) else "cpu")
    try:
        with unnoticed(), seeds.global_streams(job.seed()):
            copied = detached(module)
            copied.load_state_dict(model)
            return _first(copied.to(device).train(), job.batches, spec, device)
    except Exception:  # a user's module may need a Trainer
        return None


def _first(
    module: pl.LightningModule, batches: Batches, spec: Train, device: torch.device
) -> _Found | None:
    optimizer, _ = optimization(module)
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    largest = max((float(w.detach().abs().max()) for w in weights if w.numel()), default=0.0)
    usual = set[str]()  # layers that return infinities also where nothing is wrong, as masks do
    epochs = itertools.chain.from_iterable(itertools.repeat(batches, spec.epochs))
    for step, batch in enumerate(itertools.islice(epochs, _STEPS), 1):
        optimizer.zero_grad()
        what = _unsound(module, tree_map_only(Tensor, lambda leaf: leaf.to(device), batch), usual)
        if what is not None:
            when = f" (step {step})" if step > 1 else " (first step)"
            return _Found(what + when, step, largest)
        if spec.gradient_clip:
            torch.nn.utils.clip_grad_norm_(weights, spec.gradient_clip)
        optimizer.step()
    name = next((n for n, w in module.named_parameters() if not bool(w.isfinite().all())), None)
    return _Found(f"`{name}` is the first weight that is not finite", 2, largest) if name else None


def _unsound(module: pl.LightningModule, batch: Any, usual: set[str]) -> str | None:
    """What of a step is not finite; its gradients are there afterwards."""
    with Watch(module, sound=_are_finite) as watch:
        result = take(module, "training_step", batch)
        loss = result["loss"] if isinstance(result, dict) else result
    names = [layer.name for layer in watch.unsound if layer.name not in usual]
    if not bool(loss.isfinite().all()):
        if names:
            return f"layer `{names[0]}` is the first whose output is not finite"
        return "the loss is not finite, while every layer's output is"
    usual |= {*names}
    loss.backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"the gradient of `{name}` is not finite, while the loss is"
    return None


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    floats: Iterator[Tensor] = (t for t in tensors if t.is_floating_point())
    return all(bool(t.detach().isfinite().all()) for t in floats)
