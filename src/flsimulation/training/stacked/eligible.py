"""Which modules train the same alone and stacked, and the optimizer of a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from flsimulation.errors import describe_error
from flsimulation.experiment.spec import Train
from flsimulation.models.lightning_modules import base_of
from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.precision import FUSED
from flsimulation.training.stacked.compiler.step import NotStackable

_ELEMENTWISE = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop),
    *(torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam),
    torch.optim.RAdam,
)
FUSED_ON_GPU = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimizers that have a kernel for a whole step."""
_FUSED_ON_CPU = (*FUSED_ON_GPU, torch.optim.Adagrad)
_LARGEST = torch.finfo(torch.float32).max
_OWN = {"training_step", "validation_step", "test_step", "predict_step", "forward"} | {
    "configure_optimizers"
}
_UNUSED = {"train_dataloader", "test_dataloader", "predict_dataloader"} | {
    *("on_save_checkpoint", "on_load_checkpoint")
}  # what no client's fit calls
TRIED = (
    *("setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"),
    *("on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "configure_gradient_clipping", "on_train_batch_end"),
    *("on_train_epoch_end", "on_train_end", "on_fit_end", "teardown"),
)
"""Hooks that may be there if they change nothing, in the order in which a Trainer calls them."""
_ELSEWHERE = ("on_validation_", "on_test_", "on_predict_", "_")  # hooks that no fit calls


class Clip(NamedTuple):
    """How gradients are clipped."""

    most: float
    """Above 0."""
    how: str
    """``norm``, of all gradients of a client, or ``value``, of each number."""


class Scheduler(NamedTuple):
    """A learning-rate scheduler and when it steps."""

    scheduler: LRScheduler
    interval: str
    """``step`` or ``epoch``."""
    frequency: int


Optimization: TypeAlias = tuple[Optimizer, list[Scheduler]]
"""An optimizer and its schedulers."""


def check_stackable(module: pl.LightningModule, spec: Train) -> None:
    """Raise `NotStackable` if a fit of the module is more than its step and its optimizer's."""
    if spec.validate_:
        raise NotStackable("train.validate evaluates between the epochs")
    if not module.automatic_optimization:
        raise NotStackable("the module optimizes by itself")
    for name in sorted(overridden(type(module)) - _OWN - _UNUSED - {*TRIED}):
        if not name.startswith(_ELSEWHERE):
            raise NotStackable(f"the module has a {name} of its own")
    for name, part in module.named_modules():
        if isinstance(part, nn.SyncBatchNorm):  # of processes that share a batch
            raise NotStackable(
                f"{name} is a SyncBatchNorm, whose statistics are those of all processes"
            )


def overridden(cls: type) -> set[str]:
    """Methods that a module's class takes from Lightning's and changes."""
    own, base = set[str](), base_of(cls)
    for parent in cls.__mro__:
        if parent is base:
            break
        own |= vars(parent).keys()
    return {name for name in own if callable(getattr(base, name, None))}


def optimization(module: pl.LightningModule) -> Optimization:
    """The module's own optimizer and schedulers. Raises `NotStackable`."""
    try:
        configured: Any = module.configure_optimizers()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NotStackable(
            f"configure_optimizers needs a Trainer ({describe_error(error)})"
        ) from None
    optimizer, schedulers = parsed(configured)
    if type(optimizer) not in _ELEMENTWISE:
        raise NotStackable(f"{type(optimizer).__name__} does not work element by element")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise NotStackable("the optimizer has hooks")
    if "zero_grad" in vars(optimizer):
        raise NotStackable("the optimizer has a zero_grad of its own")
    return optimizer, schedulers


def plain_rates(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter]
) -> tuple[float, ...] | None:
    """Each parameter's learning rate, if the optimizer is SGD without anything else."""
    if type(optimizer) is not torch.optim.SGD:
        return None
    rates: dict[int, float] = {}
    for group in optimizer.param_groups:
        extras = group["momentum"], group["weight_decay"], group["maximize"]
        if any(extras) or isinstance(group["lr"], Tensor) or not abs(group["lr"]) < _LARGEST:
            return None
        rates |= {id(parameter): float(group["lr"]) for parameter in group["params"]}
    if any(id(parameter) not in rates for parameter in parameters):
        return None
    return tuple(rates[id(parameter)] for parameter in parameters)


def stack_optimizer(optimizer: Optimizer, stacked: Mapping[int, nn.Parameter]) -> None:
    """Let an optimizer that was made for one client step the stacked parameters of many.

    Parameters
    ----------
    optimizer : Optimizer
        Fresh; it works element by element.
    stacked : mapping
        Stacked parameter by the ``id`` of the client's own.
    """
    state = dict(optimizer.state)
    optimizer.state.clear()
    for group in optimizer.param_groups:
        alone = [parameter for parameter in group["params"] if id(parameter) in stacked]
        for parameter in alone:
            if parameter in state:  # Adagrad's sums, which it makes at once
                own = stacked[id(parameter)]
                optimizer.state[own] = {
                    name: value.expand(own.shape).clone(memory_format=torch.contiguous_format)
                    if isinstance(value, Tensor) and name != "step"
                    else value
                    for name, value in state[parameter].items()
                }
        group["params"] = [stacked[id(parameter)] for parameter in alone]
        chosen = group.get("fused") is not None or group.get("foreach") is not None
        chosen |= isinstance(group["lr"], Tensor)  # whose type the others compute in
        on_cpu = all(parameter.device.type == "cpu" for parameter in group["params"])
        fused = type(optimizer) in (_FUSED_ON_CPU if on_cpu else FUSED_ON_GPU)
        if fused and not chosen and not group.get("differentiable"):
            group["fused"] = all(p.dtype in FUSED for p in group["params"])


def clipped(gradients: list[Tensor | None], clip: Clip) -> list[Tensor | None]:
    """Each client's gradients as ``clip_grad_norm_`` or ``clip_grad_value_`` make them.

    Parameters
    ----------
    gradients : list of Tensor or None
        [clients, ...] for each parameter; all of them make the norm.
    clip : Clip
        The largest norm, or number.
    """
    if clip.how == "value":
        return [None if g is None else g.clamp(-clip.most, clip.most) for g in gradients]
    found = [g.reshape(len(g), -1) for g in gradients if g is not None]
    if not found:  # the step of every client failed
        return gradients
    norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in found])
    share = (clip.most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    return [
        None if g is None else g * share.to(g.dtype).view(-1, *[1] * (g.ndim - 1))
        for g in gradients
    ]


def parsed(configured: Any) -> Optimization:
    """What ``configure_optimizers`` may return, as Lightning documents it. Raises `NotStackable`."""
    schedulers: Any = []
    if (
        isinstance(configured, list | tuple)
        and len(configured) == 2
        and isinstance(configured[0], list)
    ):
        configured, schedulers = configured
        schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    if isinstance(configured, list | tuple):
        if len(configured) != 1:
            raise NotStackable("the module has several optimizers or none")
        configured = configured[0]
    if isinstance(configured, dict):
        schedulers = [configured["lr_scheduler"]] if "lr_scheduler" in configured else []
        if configured.keys() - {"optimizer", "lr_scheduler"}:
            raise NotStackable("configure_optimizers returns keys that need a Trainer")
        configured = configured["optimizer"]
    if not isinstance(configured, Optimizer):
        raise NotStackable("the module has several optimizers or none")
    return configured, [_scheduler(one) for one in schedulers]


def _scheduler(given: Any) -> Scheduler:
    config = given if isinstance(given, dict) else {"scheduler": given}
    scheduler = config.get("scheduler")
    if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
        raise NotStackable("its scheduler goes by a metric")
    return Scheduler(scheduler, config.get("interval", "epoch"), config.get("frequency", 1))
