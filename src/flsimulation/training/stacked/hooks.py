"""A module's hooks around its step: tried once, because only those that change nothing can be left out.

A hook that changes nothing for a copy, without a look at any number that another call may have another
of (a tensor's values, the counts of batches, steps and epochs), changes nothing at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from flsimulation import seeds
from flsimulation.data.leaves import Leaves
from flsimulation.errors import describe_error
from flsimulation.training.form import Form
from flsimulation.training.logged import Log
from flsimulation.training.stacked.compiler.facts import TYPICAL, Facts, NeedsValue
from flsimulation.training.stacked.compiler.step import (
    NotStackable,
    loss_of,
    named_tensors,
    watched,
)
from flsimulation.training.stacked.configuring import Configuring
from flsimulation.training.stacked.effects import (
    Draws,
    attributes,
    random_states,
    unless_another_drew,
)
from flsimulation.training.stacked.eligible import TRIED, Clip, overridden

aten = torch.ops.aten

_CLIPPING = "configure_gradient_clipping"
_READS = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default)
_READING = (Tensor.tolist, Tensor.numpy, Tensor.__array__)


class Fit(NamedTuple):
    """What a trial of hooks is made with."""

    x: Leaves
    y: Leaves
    form: Form
    """What the step receives."""
    epochs: int
    accumulate: int
    gradient_clip: float
    """As of ``train.gradient-clip``."""
    constants: Mapping[str, Any]
    """Numbers of the Trainer."""


def clips_of(module: pl.LightningModule, fit: Fit) -> tuple[Clip, ...]:
    """How each client's gradients are clipped, after a trial of the module's hooks.

    Parameters
    ----------
    module : LightningModule
        The model; not changed.
    fit : Fit
        A batch of one client, and how it trains.

    Raises
    ------
    NotStackable
        If a hook changes something, or may do so.
    """
    names = overridden(type(module))
    hooks = [name for name in TRIED if name in names]
    clips = (
        [Clip(fit.gradient_clip, "norm")] if fit.gradient_clip and _CLIPPING not in hooks else []
    )
    if hooks:
        trial = _Trial(copy.deepcopy(module), fit)
        for name in hooks:
            trial.run(name)
        clips += trial.clips
    return tuple(clips)


class _Trial:
    """A copy of a module after one step, whose hooks are called."""

    def __init__(self, module: pl.LightningModule, fit: Fit) -> None:
        self._module, self._fit, self._log = module, fit, Log(training=True)
        self._optimizer: Optimizer = Configuring(module, fit.epochs, fit.accumulate)()[0]
        self.clips: list[Clip] = []
        """What ``configure_gradient_clipping`` asks for."""
        facts = Facts(TYPICAL, fit.constants)
        watched(module, self._log, facts)
        type(module).clip_gradients = staticmethod(self._clip)  # type: ignore[assignment, method-assign]
        batch = fit.form.batch(fit.x, fit.y)
        loss = self._stepped()
        facts.values = {name: torch.tensor(value) for name, value in TYPICAL.items()}
        number, optimizer = facts.get("batch_idx"), self._optimizer
        self._given: dict[str, tuple[Any, ...]] = {
            "setup": ("fit",),
            "teardown": ("fit",),
            "on_train_batch_start": (batch, number),
            "on_before_backward": (loss,),
            "on_train_batch_end": ({"loss": loss}, batch, number),
            **dict.fromkeys(("on_before_zero_grad", "on_before_optimizer_step"), (optimizer,)),
            _CLIPPING: (optimizer, fit.gradient_clip or None, None),
        }

    @unless_another_drew
    def run(self, name: str) -> None:
        """Call a hook. Raises `NotStackable`."""
        before = self._all()
        changes = f"the module has a {name} of its own, which changes something"
        try:
            with seeds.global_streams(0):
                drawn = random_states()
                with _Unread(), _Blind():  # type: ignore[no-untyped-call]
                    found = getattr(self._module, name)(*self._given.get(name, ()))
                same = random_states() == drawn
        except (Exception, SystemExit) as error:
            known = isinstance(error, NotStackable | NeedsValue)
            text = str(error) if known else describe_error(error)
            raise NotStackable(f"the module has a {name} of its own, which {text}") from error
        if found is not None or not _equal(before, self._all()):
            raise NotStackable(changes)
        if not same:
            raise Draws(changes)

    def _stepped(self) -> Tensor:
        """The loss of a step whose gradients the parameters have."""
        module, fit = self._module, self._fit
        with seeds.global_streams(0), torch.enable_grad():
            try:
                loss, _ = loss_of(module, fit.x, fit.y, fit.form, [*named_tensors(module)])
                loss.backward()  # type: ignore[no-untyped-call]
            except (Exception, SystemExit) as error:
                raise NotStackable(f"training_step fails ({describe_error(error)})") from error
        self._log.how.clear()
        return loss.detach()

    def _all(self) -> list[Any]:
        """All that a hook may change."""
        named = named_tensors(self._module)
        tensors = [t.detach().clone() for t in named.values()]
        tensors += [t.grad.clone() for t in named.values() if t.grad is not None]
        groups = [
            {k: v for k, v in g.items() if k != "params"} for g in self._optimizer.param_groups
        ]
        kept = [
            [(name, id(t), t.requires_grad, t.grad is None) for name, t in named.items()],
            [*attributes(self._module), len(self._log.how), len(self._optimizer.state)],
            repr(groups),
        ]
        return [*kept, tensors]

    def _clip(
        self,
        optimizer: Optimizer,  # noqa: ARG002 - as Lightning's
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Stand in for ``self.clip_gradients``. Raises `NotStackable`."""
        asked, set_to = gradient_clip_val, self._fit.gradient_clip
        most = set_to if asked is None else asked
        how = str(gradient_clip_algorithm or "norm").lower()
        if how not in ("norm", "value") or (set_to and most != set_to):
            raise NotStackable("clips in another way than train.gradient-clip")
        if float(most) > 0:
            self.clips.append(Clip(float(most), how))


class _Unread(TorchFunctionMode):
    """Refuses what returns a tensor's values without a call of ATen's."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function."""
        if func in _READING:
            raise NeedsValue("reads values of tensors")
        return func(*args, **(kwargs or {}))


class _Blind(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what reads a tensor's values."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Make a call."""
        if func in _READS:
            raise NeedsValue("reads values of tensors")
        return func(*args, **(kwargs or {}))


def _equal(before: list[Any], after: list[Any]) -> bool:
    *one, tensors = before
    *two, others = after
    return one == two and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(tensors, others, strict=True)
    )
