"""One training step of many clients by vmap and autograd, and what a module's step must not ask for."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from flsimulation.data.leaves import Leaves, first, one
from flsimulation.models.lightning_modules import SILENT, defines
from flsimulation.training.form import PAIR, Form
from flsimulation.training.logged import Log
from flsimulation.training.stacked.compiler.facts import OF_MODULE, Facts
from flsimulation.training.stacked.compiler.given import Given, Names
from flsimulation.training.stacked.compiler.rewritten import (
    Rewritten,
    Undropped,
    without_fallback,
    zero_of,
)


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


def watched(module: pl.LightningModule, log: Log, facts: Facts | None = None) -> pl.LightningModule:
    """The module, made to log to ``log`` and to refuse access to what only a Trainer has.

    Parameters
    ----------
    module : LightningModule
        Changed.
    log : Log
        Takes what it logs.
    facts : Facts, optional
        What it knows of the fit around a training step.
    """
    names: dict[str, Any] = {
        name: property(_refusing(name))
        for name in (
            *("trainer", "current_epoch", "global_step", "optimizers", "lr_schedulers"),
            *("manual_backward", "toggle_optimizer"),
            *(("federated_round",) if log.training else ()),  # a program is for all rounds
        )
    }
    if facts is not None:
        names |= {name: property(_known(facts, name)) for name in OF_MODULE}
        names |= {"trainer": property(lambda _: facts.trainer), "_facts": facts}
    names |= {"logger": property(lambda _: SILENT), "loggers": property(lambda _: [SILENT])}
    if not defines("print", module):
        names["print"] = staticmethod(lambda *_, **__: None)
    names |= {"log": staticmethod(log.log), "log_dict": staticmethod(log.log_dict)}
    getattr(module, "hparams", None)  # made at its first use, which is no change
    cls = type(module)
    module.__class__ = type(cls.__name__, (cls,), names)
    return module


class Whole(nn.Module):
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
        self._takes_number = len(takes) > 1

    def forward(self, x: Leaves, y: Leaves) -> tuple[Tensor, list[Tensor]]:
        """The loss, a scalar, and the buffers that the step changes, as they are afterwards."""
        before = tensors_of(self.module, self._moving)
        with _in_calls(first(x).device), self._mode(first(x)) if self._mode else Undropped():
            output: Any = self.module.training_step(self._form.batch(x, y), *self._also())
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise NotStackable("returns no loss")
        after = tensors_of(self.module, self._moving)
        if changed := changes(before, after):  # put back by a functional call
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise NotStackable(f"changes tensors of the module ({changed[0]}{more})")
        named = named_tensors(self.module) if self._moving else {}
        return loss.reshape(()), [named[name] for name in self._moving]

    def _also(self) -> tuple[Any, ...]:
        """The batch's number, where the step takes it."""
        number = facts_of(self.module).get("batch_idx")
        return (_BatchIndex() if number is None else number,) if self._takes_number else ()


def _in_calls(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Let a GPU's attention draw its dropout's numbers by a call of its own, as a CPU's does."""
    return contextlib.nullcontext() if device.type == "cpu" else sdpa_kernel(SDPBackend.MATH)


def facts_of(module: Any) -> Facts:
    """What a `watched` module knows of the fit around its training step."""
    found: Facts = module._facts
    return found


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


def _known(facts: Facts, name: str) -> Callable[[Any], Any]:
    def get(_: Any) -> Any:
        if (found := facts.get(name)) is None:
            raise NotStackable(f"uses self.{name}")
        return found

    return get


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
    whole = Whole(module, form, lambda x: Rewritten(zero_of(x) if writes else None), names.moving)
    log: Log = module.log.__self__  # type: ignore[attr-defined]
    facts_of(module).values = dict(zip(names.facts, given.facts, strict=True))
    fixed = prefixed(names.shared, given.shared)

    def one(
        own: dict[str, Tensor], moving: dict[str, Tensor], x: Leaves, y: Leaves
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        log.how.clear()
        log.values.clear()
        copies = {name: tensor.clone() for name, tensor in moving.items()}
        loss, moved = functional_call(whole, {**own, **copies, **fixed}, (x, y))
        return loss, list(log.values), [tensor.detach() for tensor in moved]

    trained, moving = (
        prefixed(own, tensors)
        for own, tensors in ((names.trained, given.trained), (names.moving, given.moving))
    )
    with without_fallback():
        losses, logged, moved = vmap(one, randomness="different")(trained, moving, given.x, given.y)
    seeds = given.seeds(losses)
    gradients = torch.autograd.grad(losses, given.trained, seeds, allow_unused=True)
    return (losses.detach(), *(value.detach() for value in logged), *moved, *gradients)


def prefixed(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors of a module by their names in a `Whole`."""
    return {f"module.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}


def loss_of(
    module: pl.LightningModule, x: Leaves, y: Leaves, form: Form = PAIR, moving: Sequence[str] = ()
) -> tuple[Tensor, list[Tensor]]:
    """The loss of one client's batch, a scalar, and its changed buffers; the module is `watched`."""
    loss, moved = Whole(module, form, moving=moving)(x, y)
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
    facts_of(module).values = {n: int(f) for n, f in zip(names.facts, given.facts, strict=True)}
    named = named_tensors(module)
    leaves = [named[name] for name in names.trained]
    moving = [named[name] for name in names.moving]
    with torch.no_grad():
        for leaf, value in zip((*leaves, *moving), (*given.trained, *given.moving), strict=True):
            leaf.copy_(value[0])
    with torch.enable_grad():
        x, y = one(given.x, 0), one(given.y, 0)
        loss, moved = loss_of(module, x, y, form, names.moving)
        (seed,) = given.seeds(loss.detach()[None])
        gradients = torch.autograd.grad(loss, leaves, seed, allow_unused=True)
    values = (loss, *log.values, *moved)
    return (*(value.detach() for value in values), *gradients)
