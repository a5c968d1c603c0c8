"""One training step of many clients by vmap and autograd, and what a module's step must not ask for."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flsimulation.data.leaves import Leaves, first, leaves, one, refilled
from flsimulation.models.lightning_modules import SILENT, defines
from flsimulation.training.form import PAIR, Form
from flsimulation.training.logged import Log
from flsimulation.training.stacked.compiler.rewritten import (
    Rewritten,
    Undropped,
    without_fallback,
    zero_of,
)


class Step(NamedTuple):
    """What a step of many clients returns for one batch of each."""

    losses: Tensor
    """[clients]"""
    logged: list[Tensor]
    """[clients] each."""
    moved: list[Tensor]
    """[clients, ...] for each buffer that the step changes: what it is afterwards."""
    gradients: list[Tensor | None]
    """[clients, ...] for each parameter; None where the loss does not depend on it, or where the
    program has taken the step itself."""

    def of(self, clients: slice) -> Step:
        """The step of some of the clients."""
        gradients = [None if g is None else g[clients] for g in self.gradients]
        logged, moved = ([t[clients] for t in each] for each in (self.logged, self.moved))
        return Step(self.losses[clients], logged, moved, gradients)

    @classmethod
    def taken(cls, values: Sequence[Any], logged: int, moved: int = 0) -> Step:
        """From a flat sequence: losses, logged values, changed buffers, gradients."""
        losses, *rest = values
        end = logged + moved
        return cls(losses, rest[:logged], rest[logged:end], rest[end:])


class Given(NamedTuple):
    """What a step of many clients is taken from."""

    trained: Sequence[Tensor]
    """The clients' parameters, [clients, ...]."""
    moving: Sequence[Tensor]
    """The clients' buffers that a step changes, [clients, ...]."""
    shared: Sequence[Tensor]
    """All that no client changes."""
    x: Leaves
    """[clients, examples, ...]"""
    y: Leaves
    """[clients, examples, ...]"""
    draws: Sequence[Tensor] = ()
    """Random numbers in the order in which the step draws them, [clients, ...]."""

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the fields."""
        return [
            *(*self.trained, *self.moving, *self.shared),
            *(*leaves(self.x), *leaves(self.y), *self.draws),
        ]

    def filled(self, tensors: Sequence[Tensor]) -> Given:
        """The same with other tensors, in the order of `tensors`, and without draws."""
        rest = iter(tensors)

        def taken(count: int) -> list[Tensor]:
            return list(itertools.islice(rest, count))

        trained, moving, shared = (
            taken(len(part)) for part in (self.trained, self.moving, self.shared)
        )
        x, y = (refilled(part, taken(len(leaves(part)))) for part in (self.x, self.y))
        return Given(trained, moving, shared, x, y)

    def of(self, place: int) -> Given:
        """What one client's step is taken from, as one of many."""
        own = slice(place, place + 1)
        trained, moving, draws = (
            [tensor[own] for tensor in part] for part in (self.trained, self.moving, self.draws)
        )
        return Given(trained, moving, self.shared, one(self.x, own), one(self.y, own), draws)


class Names(NamedTuple):
    """Names of a module's tensors, by what becomes of them."""

    trained: list[str]
    """Parameters that are stacked; tied ones once."""
    moving: list[str]
    """Buffers (and frozen parameters) that a step changes, which are stacked, too."""
    shared: list[str]
    """All others, which no client changes."""


class NotStackable(Exception):  # noqa: N818 - no error: the module is trained client by client
    """Why a module's clients cannot be trained as one program, as the end of a sentence."""


class StepFails(NotStackable):
    """The step of one client alone fails.

    Parameters
    ----------
    text : str
        As of `NotStackable`.
    error : str
        What it raises, in one line.
    """

    def __init__(self, text: str, error: str) -> None:
        super().__init__(text)
        self.error = error


class WritesInPlace(NotStackable):
    """The step writes into a tensor of all clients what differs between them."""


def watched(module: pl.LightningModule, log: Log) -> pl.LightningModule:
    """The module, made to log to ``log`` and to refuse access to what only a Trainer has."""
    names: dict[str, Any] = {
        name: property(_refusing(name))
        for name in (
            *("trainer", "current_epoch", "global_step", "optimizers", "lr_schedulers"),
            *("manual_backward", "toggle_optimizer"),
            *(("federated_round",) if log.training else ()),  # a program is for all rounds
        )
    }
    names |= {"logger": property(lambda _: SILENT), "loggers": property(lambda _: [SILENT])}
    if not defines("print", module):
        names["print"] = staticmethod(lambda *_, **__: None)
    names |= {"log": staticmethod(log.log), "log_dict": staticmethod(log.log_dict)}
    getattr(module, "hparams", None)  # made at its first use, which is no change
    cls = type(module)
    module.__class__ = type(cls.__name__, (cls,), names)
    return module


class _Whole(nn.Module):
    """Calls a module's training step as its forward, for ``functional_call``."""

    def __init__(
        self,
        module: pl.LightningModule,
        form: Form,
        mode: Callable[[Tensor], Undropped] | None = None,
        moving: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.module, self._form, self._mode = module, form, mode
        self._moving = moving
        takes = inspect.signature(module.training_step).parameters
        if "dataloader_iter" in takes:
            raise NotStackable("takes a dataloader_iter")
        self._also: tuple[Any, ...] = (_BatchIndex(),) if len(takes) > 1 else ()

    def forward(self, x: Leaves, y: Leaves) -> tuple[Tensor, list[Tensor]]:
        """The loss, a scalar, and the buffers that the step changes, as they are afterwards."""
        before = tensors_of(self.module, self._moving)
        with Undropped() if self._mode is None else self._mode(first(x)):
            output: Any = self.module.training_step(self._form.batch(x, y), *self._also)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise NotStackable("returns no loss")
        after = tensors_of(self.module, self._moving)
        if changed := changes(before, after):  # put back by a functional call
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise NotStackable(f"changes tensors of the module ({changed[0]}{more})")
        named = named_tensors(self.module)
        return loss.reshape(()), [named[name] for name in self._moving]


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, tied ones once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def tensors_of(module: nn.Module, without: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Identity and version of a module's parameters and buffers, by name."""
    return {
        name: (id(tensor), tensor._version)
        for name, tensor in named_tensors(module).items()
        if name not in without
    }


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Names of a module's parameters and buffers that a step changed."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


class _BatchIndex:
    """A batch's number, which a program for all batches cannot know."""


def _refuse_index(*_: Any) -> Any:
    raise NotStackable("uses batch_idx")


for _name in {"__getattr__", *dir(int)} - {
    *("__new__", "__init__", "__class__", "__dir__", "__doc__", "__init_subclass__"),
    *("__getattribute__", "__setattr__", "__delattr__", "__subclasshook__", "__sizeof__"),
    *("__reduce__", "__reduce_ex__", "__getnewargs__", "__getstate__"),
}:
    if _name.startswith("__"):
        setattr(_BatchIndex, _name, _refuse_index)


def _refusing(name: str) -> Callable[[Any], Any]:
    def refuse(_: Any) -> Any:
        raise NotStackable(f"uses self.{name}")

    return refuse


def stacked_step(
    module: pl.LightningModule,
    names: Names,
    given: Given,
    form: Form = PAIR,
    *,
    writes: bool = False,
) -> tuple[Any, ...]:
    """Losses, logged values, changed buffers and gradients of all clients.

    Parameters
    ----------
    module : LightningModule
        It is `watched`.
    names : Names
        Of its tensors.
    given : Given
        Without ``draws``: who calls this sees to what is drawn.
    form : Form
        What the step receives.
    writes : bool
        Whether the step writes into tensors that it makes: they are then one for each client.
    """
    whole = _Whole(module, form, lambda x: Rewritten(zero_of(x) if writes else None), names.moving)
    log: Log = module.log.__self__  # type: ignore[attr-defined]
    fixed = _prefixed(names.shared, given.shared)

    def one(
        own: dict[str, Tensor], moving: dict[str, Tensor], x: Leaves, y: Leaves
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        log.how.clear()
        log.values.clear()
        copies = {name: tensor.clone() for name, tensor in moving.items()}
        loss, moved = functional_call(whole, {**own, **copies, **fixed}, (x, y))
        return loss, list(log.values), [tensor.detach() for tensor in moved]

    trained, moving = (
        _prefixed(own, tensors)
        for own, tensors in ((names.trained, given.trained), (names.moving, given.moving))
    )
    with without_fallback():
        losses, logged, moved = vmap(one, randomness="different")(trained, moving, given.x, given.y)
    seeds = torch.ones(len(losses), dtype=losses.dtype, device=losses.device)
    gradients = torch.autograd.grad(losses, given.trained, seeds, allow_unused=True)
    return (losses.detach(), *(value.detach() for value in logged), *moved, *gradients)


def _prefixed(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}


def loss_of(
    module: pl.LightningModule, x: Leaves, y: Leaves, form: Form = PAIR, moving: Sequence[str] = ()
) -> tuple[Tensor, list[Tensor]]:
    """The loss of one client's batch, a scalar, and its changed buffers; the module is `watched`."""
    loss, moved = _Whole(module, form, moving=moving)(x, y)
    return loss, moved


def alone_step(
    module: pl.LightningModule, names: Names, given: Given, form: Form = PAIR
) -> tuple[Any, ...]:
    """One client's step without vmap; the module takes its tensors.

    Parameters
    ----------
    module : LightningModule
        It is `watched`; changed.
    names : Names
        Of its tensors.
    given : Given
        Of one client, as one of many; without ``draws``.
    form : Form
        What the step receives.
    """
    log: Log = module.log.__self__  # type: ignore[attr-defined]
    named = named_tensors(module)
    leaves = [named[name] for name in names.trained]
    moving = [named[name] for name in names.moving]
    with torch.no_grad():
        for leaf, value in zip((*leaves, *moving), (*given.trained, *given.moving), strict=True):
            leaf.copy_(value[0])
    with torch.enable_grad():
        x, y = one(given.x, 0), one(given.y, 0)
        loss, moved = loss_of(module, x, y, form, names.moving)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    values = (loss, *log.values, *moved)
    return (*(value.detach() for value in values), *gradients)
