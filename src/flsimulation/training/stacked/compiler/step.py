"""One training step of many clients by vmap and autograd, and what a module's step must not ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flsimulation.data.leaves import Leaves, first
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
    gradients: list[Tensor | None]
    """[clients, ...] for each parameter; None where the loss does not depend on it, or where the
    program has taken the step itself."""

    def of(self, clients: slice) -> Step:
        """The step of some of the clients."""
        gradients = [None if g is None else g[clients] for g in self.gradients]
        return Step(self.losses[clients], [value[clients] for value in self.logged], gradients)

    @classmethod
    def taken(cls, values: Sequence[Any], logged: int) -> Step:
        """From a flat sequence: losses, ``logged`` logged values, gradients."""
        losses, *rest = values
        return cls(losses, rest[:logged], rest[logged:])


class NotStackable(Exception):  # noqa: N818 - no error: the module is trained client by client
    """Why a module's clients cannot be trained as one program, as the end of a sentence."""


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
    ) -> None:
        super().__init__()
        self.module, self._form, self._mode = module, form, mode
        takes = inspect.signature(module.training_step).parameters
        if "dataloader_iter" in takes:
            raise NotStackable("takes a dataloader_iter")
        self._also: tuple[Any, ...] = (_BatchIndex(),) if len(takes) > 1 else ()

    def forward(self, x: Leaves, y: Leaves) -> Tensor:
        before = tensors_of(self.module)
        with Undropped() if self._mode is None else self._mode(first(x)):
            output: Any = self.module.training_step(self._form.batch(x, y), *self._also)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise NotStackable("returns no loss")
        if changed := changes(before, tensors_of(self.module)):  # put back by a functional call
            raise NotStackable(changed)
        return loss.reshape(())


def tensors_of(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version of each parameter and buffer of a module, by name."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: (id(tensor), tensor._version) for name, tensor in named}


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    """What a step changed of a module's parameters and buffers, as the end of a sentence."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not names:
        return None
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"changes buffers of the module ({names[0]}{more})"


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
    trained: Sequence[str],
    shared: Sequence[str],
    leaves: Sequence[Tensor],
    rest: Sequence[Tensor],
    x: Leaves,
    y: Leaves,
    form: Form = PAIR,
    *,
    writes: bool = False,
) -> tuple[Any, ...]:
    """Losses, logged values and gradients of all clients.

    Parameters
    ----------
    module, trained, shared, leaves, rest
        The module, the names of its stacked and its other tensors, and these.
    x, y, form
        A batch of each client, [clients, examples, ...], and what the step receives.
    writes : bool
        Whether the step writes into tensors that it makes: they are then one for each client.
    """
    whole = _Whole(module, form, lambda x: Rewritten(zero_of(x) if writes else None))
    log: Log = module.log.__self__  # type: ignore[attr-defined]
    fixed = {f"module.{name}": tensor for name, tensor in zip(shared, rest, strict=True)}

    def one(own: dict[str, Tensor], x: Leaves, y: Leaves) -> tuple[Tensor, list[Tensor]]:
        log.how.clear()
        log.values.clear()
        loss = functional_call(whole, {**own, **fixed}, (x, y))
        return loss, list(log.values)

    stacked = {f"module.{name}": leaf for name, leaf in zip(trained, leaves, strict=True)}
    with without_fallback():
        losses, logged = vmap(one)(stacked, x, y)
    seeds = torch.ones(len(losses), dtype=losses.dtype, device=losses.device)
    gradients = torch.autograd.grad(losses, leaves, seeds, allow_unused=True)
    return (losses.detach(), *(value.detach() for value in logged), *gradients)


def loss_of(module: pl.LightningModule, x: Leaves, y: Leaves, form: Form = PAIR) -> Tensor:
    """The loss of one client's batch, a scalar; the module is `watched`."""
    loss: Tensor = _Whole(module, form)(x, y)
    return loss


def alone_step(
    module: pl.LightningModule,
    trained: Sequence[str],
    own: Sequence[Tensor],
    x: Leaves,
    y: Leaves,
    form: Form = PAIR,
) -> tuple[Any, ...]:
    """One client's loss, logged values and gradients without vmap; the module takes its weights."""
    log: Log = module.log.__self__  # type: ignore[attr-defined]
    named = dict(module.named_parameters())
    leaves = [named[name] for name in trained]
    with torch.no_grad():
        for leaf, value in zip(leaves, own, strict=True):
            leaf.copy_(value)
    with torch.enable_grad():
        loss = loss_of(module, x, y, form)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return (loss.detach(), *(value.detach() for value in log.values), *gradients)
