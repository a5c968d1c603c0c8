"""One training step of many clients by vmap and autograd, and what a module's step must not ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flsimulation.training.logged import Log


class NotStackable(Exception):  # noqa: N818 - no error: the module is trained client by client
    """Why a module's clients cannot be trained as one program, as the end of a sentence."""


def watched(module: pl.LightningModule, log: Log) -> pl.LightningModule:
    """The module, made to log to ``log`` and to refuse what a Trainer would give."""
    names: dict[str, Any] = {
        name: property(_refusing(name))
        for name in (
            *("trainer", "current_epoch", "global_step", "optimizers", "lr_schedulers"),
            *("manual_backward", "logger", "loggers", "toggle_optimizer"),
        )
    }
    names |= {"log": staticmethod(log.log), "log_dict": staticmethod(log.log_dict)}
    cls = type(module)
    module.__class__ = type(cls.__name__, (cls,), names)
    return module


class _Whole(nn.Module):
    """Calls a module's training step as its forward, for ``functional_call``."""

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.module = module
        takes = inspect.signature(module.training_step).parameters
        if "dataloader_iter" in takes:
            raise NotStackable("takes a dataloader_iter")
        self._also: tuple[Any, ...] = (_BatchIndex(),) if len(takes) > 1 else ()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        output: Any = self.module.training_step((x, y), *self._also)
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise NotStackable("returns no loss")
        return loss


class _BatchIndex(int):
    """A batch's number, which a program for all batches cannot know."""


def _refuse_index(*_: Any) -> Any:
    raise NotStackable("uses batch_idx")


for _name in (
    *("eq", "ne", "lt", "le", "gt", "ge", "bool", "index", "int", "float", "hash", "str", "repr"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "mod", "rmod", "floordiv", "truediv", "format"),
):
    setattr(_BatchIndex, f"__{_name}__", _refuse_index)


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
    x: Tensor,
    y: Tensor,
) -> tuple[Any, ...]:
    """Losses, logged values and gradients of all clients."""
    whole = _Whole(module)
    log: Log = module.log.__self__  # type: ignore[attr-defined]
    fixed = {f"module.{name}": tensor for name, tensor in zip(shared, rest, strict=True)}

    def one(own: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        log.how.clear()
        log.values.clear()
        loss = functional_call(whole, {**own, **fixed}, (x, y))
        return loss, list(log.values)

    stacked = {f"module.{name}": leaf for name, leaf in zip(trained, leaves, strict=True)}
    losses, logged = vmap(one)(stacked, x, y)
    seeds = torch.ones(len(x), dtype=losses.dtype, device=losses.device)
    gradients = torch.autograd.grad(losses, leaves, seeds, allow_unused=True)
    return (losses.detach(), *(value.detach() for value in logged), *gradients)
