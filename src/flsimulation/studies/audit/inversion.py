"""Gradient inversion: the images of a small batch from the gradient that a client sends.

Sources: Zhu et al., "Deep Leakage from Gradients" (NeurIPS 2019); Zhao et al., "iDLG" (2020) and Yin et al.,
"See through Gradients" (CVPR 2021) for the labels; Geiping et al., "Inverting Gradients" (NeurIPS 2020) for the
search: the cosine of the gradients, total variation, signed steps of Adam, pixels held within their range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from flsimulation import seeds
from flsimulation.errors import InputError, ModelError, describe_error
from flsimulation.experiment.spec import Privacy
from flsimulation.rundir.audit import Inversion
from flsimulation.studies.audit.losses import loss_of
from flsimulation.studies.audit.membership import Tell
from flsimulation.studies.audit.released import clipped, noise_of, with_noise
from flsimulation.studies.audit.subject import Pool, Subject
from flsimulation.training.alone import detached, take
from flsimulation.training.form import Form

BATCH = 4
"""Images of the batch that is inverted; each of another class."""
_STEPS = 400
_RATE = 0.1
_SMOOTH = 1e-3  # weight of the total variation
_DECAYS = (3 / 8, 5 / 8, 7 / 8)  # of the steps, after which the rate is a tenth
_SAID = 100  # steps between two lines of progress
_LARGEST = 64  # pixels of a side: larger images take hours


@dataclass(frozen=True)
class Target:
    """What an attacker sees, and what is known of the images."""

    gradient: tuple[Tensor, ...]
    """Of the batch, for each parameter."""
    shape: tuple[int, ...]
    """Of the batch's images, [n, channels, height, width]."""
    low: float
    """Least and largest value of a pixel."""
    high: float


def why_not_inverted(subject: Subject) -> str | None:
    """Why the inputs of a run cannot be inverted; None if they can."""
    x = subject.pool.x
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        return "its inputs are no images"
    if max(x.shape[2:]) > _LARGEST:
        return f"its images have more than {_LARGEST} x {_LARGEST} pixels"
    return None


def inverted(subject: Subject, seed: int, tell: Tell, count: int = BATCH) -> Inversion:
    """Invert the gradient of a batch of one client's first step, as it would leave the client.

    Parameters
    ----------
    subject : Subject
        The run; its first model is attacked, as its clients send updates of it in round 1.
    seed : int
        Of the batch, the noise, and the search's start.
    tell : callable
        Called with the progress.
    count : int
        Images of the batch, each of another class; fewer if there are fewer classes.

    Raises
    ------
    ModelError
        If the model's gradient cannot be computed, or has no second derivative.
    """
    pool, rng = subject.pool, seeds.rng(seed, "audit inversion")
    rows = _batch(pool.labels[: pool.members], count, rng)
    (true, labels), others = _prepared(subject, rows), _prepared(subject, _others(pool))[0]
    module, form = detached(subject.module).eval(), subject.prepared.form
    noise = noise_of(subject.experiment, subject.sizes)
    gradient = observed(module, true, labels, form, subject.experiment.privacy, noise, rng)
    low, high = float(others.min()), float(others.max())
    target = Target(tuple(gradient), tuple(true.shape), low, high)
    known = recovered_labels(gradient, len(rows))
    right = len(set(known.tolist()) & set(labels.tolist()))
    # the images are searched with the true labels, so that each has the image that it is compared with
    found = search(module, target, labels, form, seeds.integer(seed, "audit start"), tell)
    mse = ((found - true) ** 2).flatten(1).mean(1).tolist()
    psnr = [10 * math.log10((high - low) ** 2 / max(own, 1e-12)) for own in mse]
    guess = float(((others.mean(0) - true) ** 2).mean())
    return Inversion(true.numpy(), found.numpy(), tuple(mse), tuple(psnr), guess, right)


def _batch(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Places of examples of different classes."""
    order = rng.permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    return np.asarray(order[np.sort(first)[:count]])


def _others(pool: Pool) -> np.ndarray:
    return np.arange(pool.members, len(pool))


def _prepared(subject: Subject, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Inputs and labels of examples of the pool, as an evaluation has them."""
    taken = [
        subject.evaluated(subject.pool.x, subject.pool.y, rows).taken(rows[i : i + 250])
        for i in range(0, len(rows), 250)
    ]
    x, y = (torch.cat(list(part)) for part in zip(*taken, strict=True))
    return x, y


def observed(
    module: pl.LightningModule,
    x: Tensor,
    y: Tensor,
    form: Form,
    spec: Privacy,
    noise: float,
    rng: np.random.Generator,
) -> list[Tensor]:
    """The gradient of a batch as it leaves the client under ``[privacy]``.

    Its length is the clipping norm where the client's update is clipped: the longest that is sent, which is
    best for the attacker.
    """
    if spec.mode == "example":
        each = [
            clipped(_gradient(module, x[i : i + 1], y[i : i + 1], form), spec.clip)
            for i in range(len(x))
        ]
        total = [torch.stack(parts).sum(0) for parts in zip(*each, strict=True)]
        noisy = with_noise(total, noise * spec.clip, rng)
        return [part / len(x) for part in noisy]
    whole = [part.detach() for part in _gradient(module, x, y, form)]
    if spec.mode == "none":
        return whole
    norm = float(torch.stack([part.norm() for part in whole]).norm())
    longest = [part * (spec.clip / max(norm, 1e-30)) for part in whole]
    return with_noise(longest, noise * spec.clip, rng)


def recovered_labels(gradient: Sequence[Tensor], count: int) -> np.ndarray:
    """Classes of a batch's images, each of another one: where the last layer's gradient is most negative.

    The gradient of a cross-entropy by a logit is its probability, less 1 for the true class.
    """
    biases = [part for part in gradient if part.ndim == 1]
    last = biases[-1] if biases and gradient[-1].ndim == 1 else gradient[-1].flatten(1).sum(1)
    return np.asarray(torch.argsort(last)[:count].numpy())


def search(
    module: pl.LightningModule,
    target: Target,
    labels: Tensor,
    form: Form,
    seed: int,
    tell: Tell,
    steps: int = _STEPS,
) -> Tensor:
    """Images whose gradient points where the observed one does, as `Target.shape`.

    Parameters
    ----------
    module : LightningModule
        The model in evaluation mode; not changed.
    target : Target
        What the attacker sees.
    labels : Tensor
        Classes of the images.
    form : Form
        What the module's steps receive.
    seed : int
        Of the images that the search starts from.
    tell : callable
        Called with the progress.
    steps : int
        Of the search.
    """
    stream = torch.Generator().manual_seed(seed)
    start = torch.rand(target.shape, generator=stream)
    images = (target.low + start * (target.high - target.low)).requires_grad_()
    adam = torch.optim.Adam([images], lr=_RATE * (target.high - target.low))
    ends = [int(steps * share) for share in _DECAYS]
    rates = torch.optim.lr_scheduler.MultiStepLR(adam, ends, gamma=0.1)
    for step in range(steps):
        found = _gradient(module, images, labels, form, differentiable=True)
        cost = _apart(found, target.gradient) + _SMOOTH * _variation(images)
        (slope,) = torch.autograd.grad(cost, images)
        images.grad = slope.sign()
        adam.step()
        rates.step()
        with torch.no_grad():
            images.clamp_(target.low, target.high)
        if step % _SAID == 0:
            tell(f"inversion, step {step} of {steps}")
    return images.detach()


def _apart(found: Sequence[Tensor], gradient: Sequence[Tensor]) -> Tensor:
    """One less the cosine of two gradients, over all parameters."""
    pairs = [*zip(found, gradient, strict=True)]
    product = torch.stack([(a * b).sum() for a, b in pairs]).sum()
    lengths = [
        torch.stack([part.square().sum() for part in side]).sum().sqrt()
        for side in zip(*pairs, strict=True)
    ]
    return 1 - product / (lengths[0] * lengths[1]).clamp(min=1e-30)


def _variation(images: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return down + (images[..., :, 1:] - images[..., :, :-1]).abs().mean()


def _gradient(
    module: pl.LightningModule, x: Tensor, y: Tensor, form: Form, *, differentiable: bool = False
) -> list[Tensor]:
    """The gradient of a batch's loss for each trained parameter; zeros for those it does not depend on."""
    parameters = [own for own in module.parameters() if own.requires_grad]
    try:
        with torch.enable_grad():
            loss = loss_of(take(module, "training_step", form.batch(x, y)))
            found = torch.autograd.grad(
                loss, parameters, create_graph=differentiable, allow_unused=True
            )
    except InputError:
        raise
    except Exception as error:
        raise ModelError(
            f"the gradient of training_step cannot be computed ({describe_error(error)})"
        ) from error
    return [
        torch.zeros_like(own) if part is None else part
        for own, part in zip(parameters, found, strict=True)
    ]
