"""What DP-SGD cannot train with its guarantee, and says so."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flsimulation.data.leaves import each
from flsimulation.errors import ModelError, describe_error
from flsimulation.experiment.spec import Train
from flsimulation.seeds import global_streams
from flsimulation.training.logged import Log
from flsimulation.training.memory import is_out_of_memory
from flsimulation.training.private.dropout import dropped
from flsimulation.training.private.gradients import Clipped, Examples, Gradients
from flsimulation.training.private.single import OneByOne
from flsimulation.training.stacked.compiler.eager import EagerStep
from flsimulation.training.stacked.compiler.given import Given
from flsimulation.training.stacked.compiler.step import NotStackable, facts_of, loss_of
from flsimulation.training.stacked.effects import attributes
from flsimulation.training.stacked.eligible import TRIED, check_stackable, overridden

_MODE = "privacy.mode is 'example', but "
_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = nn.modules.dropout._DropoutNd
_TOLERANCE = 1e-4, 1e-9  # of a number among the largest, in float32 and float64
_EXAMPLES = 6
_UNCLIPPED = 1e30


def check_module(module: pl.LightningModule, spec: Train) -> None:
    """Raise `ModelError` if a fit is more than DP-SGD can carry out."""
    if spec.engine == "lightning":
        raise ModelError(
            f"{_MODE}train.engine is 'lightning', whose Trainer has no gradients of single examples; "
            f"set 'auto'"
        )
    if spec.accumulate > 1:
        raise ModelError(
            f"{_MODE}train.accumulate is {spec.accumulate}: a step of DP-SGD takes one sample; set 1, "
            f"and a larger train.batch-size"
        )
    if spec.precision != "32-true":
        raise ModelError(
            f"{_MODE}train.precision is {spec.precision!r}, in which norms of gradients are not exact; "
            f"set '32-true'"
        )
    for name, part in module.named_modules():
        if isinstance(part, _NORMS):
            raise ModelError(
                f"{_MODE}the layer {name} is a {type(part).__name__}, which mixes the examples of a "
                f"batch; use GroupNorm"
            )
    if not module.automatic_optimization:
        raise ModelError(
            f"{_MODE}the module optimizes by itself; let training_step return the loss"
        )
    for name in sorted(overridden(type(module)) & {*TRIED}):
        raise ModelError(
            f"{_MODE}the module has a {name} of its own, which may see gradients without noise; "
            f"remove it"
        )
    try:
        check_stackable(module, spec)
    except NotStackable as reason:  # what a fit does beside its steps would have no noise
        raise ModelError(f"{_MODE}{reason}, beside the noisy steps; leave it out") from None


def checked(eager: EagerStep) -> EagerStep:
    """The step without dropout, in float64 if that is possible; raise `ModelError` if it depends on
    more than one example at a time.

    The step of a batch must be the mean of those of its examples: else an example would have another
    part in it than the one that is clipped. Dropout is switched off for the comparison.
    """
    if moving := eager.names.moving:
        raise ModelError(
            f"{_MODE}training_step changes {moving[0]}, which would hold what it saw without noise; "
            f"keep nothing in the module"
        )
    if facts := eager.names.facts:
        raise ModelError(
            f"{_MODE}training_step depends on {facts[0]}; let it depend on its batch only"
        )
    quiet = copy.copy(eager)
    quiet.module = _without_dropout(eager.module)
    quiet._observed = {}
    if quiet.observed(_EXAMPLES).draws:
        raise ModelError(
            f"{_MODE}training_step draws random numbers, so that a batch cannot be compared with its "
            f"examples; draw with nn.Dropout only"
        )
    precise = in_double(quiet)
    given = precise.given(1, _EXAMPLES)
    loss, gradients = _of_batch(precise, given)
    all_kept = gradients[0].new_ones(1, _EXAMPLES)
    taken = Examples(given.x, given.y, all_kept)
    single = OneByOne(precise, _UNCLIPPED)(given.trained, taken)
    means = [total[0] / _EXAMPLES for total in single.sums]
    losses = loss, single.losses.mean()
    if not all(bool(found.isfinite().all()) for found in (*losses, *gradients)):
        raise ModelError(
            f"{_MODE}training_step's loss, or its gradient, is not finite for examples of the data; look for a "
            f"division by 0, or the log or sqrt of 0, and for such values in the data"
        )
    if not are_close([losses[0].reshape(1), *gradients], [losses[1].reshape(1), *means]):
        raise ModelError(
            f"{_MODE}training_step's loss of a batch is not the mean of its examples' losses (of "
            f"{_EXAMPLES} examples {float(losses[0]):.6g}, and {float(losses[1]):.6g}); return a mean "
            f"over examples (reduction='mean')"
        )
    _check_dropout(eager)
    return precise


def _check_dropout(eager: EagerStep) -> None:
    """Raise `ModelError` if the step fails only with its dropout."""
    if not eager.observed(1).draws:
        return
    given = eager.given(1, 1)
    kept = given.trained[0].new_ones(1, 1)
    try:
        with global_streams(0):
            OneByOne(eager, _UNCLIPPED)(given.trained, Examples(given.x, given.y, kept))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{_MODE}training_step fails with its dropout: {describe_error(error)}"
        ) from None


def is_same(gradients: Gradients, precise: EagerStep) -> bool:
    """Whether gradients are those of each example by itself."""
    given = precise.given(2, _EXAMPLES, [1.0, 0.9])
    kept = given.trained[0].new_ones(2, _EXAMPLES)
    kept[1, 3:] = 0
    draws = _some_dropped(precise, 2, kept.device)
    x, y = (each(torch.clone, part) for part in (given.x, given.y))  # a step may write into them
    trial = OneByOne(precise, _UNCLIPPED)(given.trained, Examples(x, y, kept, draws))
    ours = gradients(given.trained, Examples(given.x, given.y, kept, draws))
    return are_close(_compared(ours), _compared(trial))


def _some_dropped(precise: EagerStep, clients: int, device: torch.device) -> list[Tensor]:
    """What the step draws for a few examples of each client."""
    generators = [np.random.default_rng(place) for place in range(clients)]
    draws = precise.observed(1).draws
    return dropped(draws, generators, [_EXAMPLES] * clients, _EXAMPLES, device)


def in_double(eager: EagerStep) -> EagerStep:
    """The step in float64, or as it is where that fails."""
    try:
        precise = eager.in_double()
        precise.observed(1)
    except Exception:  # a user's step may insist on its type
        return eager
    return precise


def are_close(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether tensors are the same to rounding, by the largest number of all of them."""
    most = max(float(t.abs().max()) for t in wanted if t.numel())
    tolerance = _TOLERANCE[0 if wanted[-1].dtype == torch.float32 else 1] * max(most, 1e-12)
    return all(
        bool(((one - other).abs() <= tolerance).all())
        for one, other in zip(found, wanted, strict=True)
    )


def _compared(step: Clipped) -> list[Tensor]:
    return [step.losses, step.norms, *step.logged, *step.sums]


def _of_batch(eager: EagerStep, given: Given) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a step as the module takes it."""
    module = eager.watched(Log(training=True))
    facts_of(module).values = {}
    before = attributes(module)
    leaves = [module.get_parameter(name) for name in eager.names.trained]
    with torch.enable_grad():
        x, y = (each(lambda t: t[0], part) for part in (given.x, given.y))
        loss, _ = loss_of(module, x, y, eager.form)
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    if attributes(module) != before:
        raise ModelError(
            f"{_MODE}training_step changes the module itself, which would hold what it saw without "
            f"noise; keep nothing in the module"
        )
    gradients = [
        torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)
    ]
    return loss.detach(), gradients


def _without_dropout(module: pl.LightningModule) -> pl.LightningModule:
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, _DROPOUTS):
            part.p = 0.0
        elif isinstance(part, nn.RNNBase | nn.MultiheadAttention):
            part.dropout = 0.0
    return module
