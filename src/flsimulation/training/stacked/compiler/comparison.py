"""Whether two ways to compute one training step agree to their roundings.

Each operation rounds its result by half a machine epsilon, eps, at most. A stacked step and a client's own
do the same operations, but take sums in another order, so that both err independently. Along a chain
of k roundings the errors add up to about eps / 2 sqrt(k), and the difference of two ways to
eps sqrt(k / 2). A sum of n terms, taken in blocks, is a chain of log2(n) and a block's length:
some 30 roundings for thousands of terms. Twenty layers, forwards and backwards, are 40 such sums with
an activation each, k = 1,300, and eps sqrt(k / 2) is 25 eps. `ROUNDINGS` allows 64, because terms that
cancel make what is left of a sum relatively worse. In half precision sums are taken in float32 and rounded once:
k is 80 for the same layers, and 16 eps are allowed.

========  ==========  ================  =================
type      eps         relative          of what cancelled
========  ==========  ================  =================
float64   2.2e-16     64 eps = 1.4e-14  8 eps = 1.8e-15
float32   1.2e-7      64 eps = 7.6e-6   8 eps = 9.5e-7
float16   9.8e-4      16 eps = 1.6e-2   8 eps = 7.8e-3
bfloat16  7.8e-3      16 eps = 0.12     8 eps = 6.3e-2
========  ==========  ================  =================

The last column is for results whose terms cancel altogether, such as the gradient of a bias that a
normalisation takes away again: of such a gradient only roundings are left, which are as large as
those of the other gradients. docs/decisions/0012 has the differences that were measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flsimulation.training.stacked.compiler.given import Step

ROUNDINGS = 64
"""Relative difference that is allowed, in machine epsilons; see above."""
HALF_ROUNDINGS = 16
"""The same in half precision."""
ALIKE = 0.01
"""Part of a step's gradient by which two ways may differ that agree in float64."""
STATISTICS = 64.0
"""Scale of buffers that a step changes: means of thousands of numbers of about 1, added up in a row."""
CANCELLED = 8
"""Difference that is allowed in machine epsilons of the scale, whatever is left of it."""


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Let a GPU compute as `is_close` expects inside the block.

    It multiplies float32 as such, not rounded to TF32's ten bits, and convolves without cuDNN, whose
    faster algorithms (Winograd's, by transforms) err by hundreds of times more than sums do.
    """
    kinds: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    kinds += (torch.backends.cuda.matmul,)
    before, had_cudnn = [kind.fp32_precision for kind in kinds], torch.backends.cudnn.enabled
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        torch.backends.cudnn.enabled = False
        yield
    finally:
        torch.backends.cudnn.enabled = had_cudnn
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def is_close(one: Tensor | None, other: Tensor | None, eps: float, scale: Tensor | float) -> bool:
    """Whether two results differ by no more than their roundings, for every client.

    Parameters
    ----------
    one, other : Tensor or None
        [clients, ...]; infinite and missing numbers must be the same ones in both.
    eps : float
        Machine epsilon of the coarsest type in which they were computed; that of their own type is
        taken if it is larger.
    scale : Tensor or float
        Size of the terms of which the results were summed up, [clients] or one for all.
    """
    if one is None or other is None:
        return one is other
    eps = max([eps, *(torch.finfo(t.dtype).eps for t in (one, other) if t.is_floating_point())])
    one, other = one.double(), other.double()
    differ = ~((one == other) | (one.isnan() & other.isnan()))
    apart = _lengths(torch.where(differ, one - other, 0.0))
    length = _lengths_of_all([other])
    relative = (HALF_ROUNDINGS if is_half(eps) else ROUNDINGS) * eps
    return bool((apart <= relative * length + CANCELLED * eps * scale).all())


def are_close(one: Step, other: Step, eps: Sequence[float]) -> bool:
    """Whether two ways to compute a step agree, array by array and client by client.

    Losses and logged values are taken for sums of terms of about 1, gradients for sums of terms as
    large as all of a client's gradients together.

    Parameters
    ----------
    one, other : Step
        Of the same clients.
    eps : sequence of float
        Of the losses, each logged value, changed buffer and gradient, as of `is_close`.
    """
    whole = _lengths_of_all([g for g in other.gradients if g is not None])
    numbers: list[Tensor | float] = [1.0] * (1 + len(one.logged))
    scales = [*numbers, *[STATISTICS] * len(one.moved), *[whole] * len(one.gradients)]
    ours, theirs = ([s.losses, *s.logged, *s.moved, *s.gradients] for s in (one, other))
    return all(is_close(*each) for each in zip(ours, theirs, eps, scales, strict=True))


def are_alike(one: Step, other: Step) -> bool:
    """Whether two ways to compute a step agree but for units whose inputs are near 0.

    Their sums are taken in other orders: by blocks or one number after the other, which errs by
    sqrt(n) machine epsilons for n terms. Of a million units with inputs of about 1, ten are as near to 0 as 1e-5.
    """
    pairs = [
        *((own, like, ALIKE) for own, like in zip(one.moved, other.moved, strict=True)),
        (one.losses, other.losses, ALIKE),
    ]
    whole = _lengths_of_all([g for g in other.gradients if g is not None])
    return all(
        bool((_lengths((own - like).double()) <= share * (1 + _lengths(like.double()))).all())
        for own, like, share in pairs
    ) and all(
        own is like
        if own is None or like is None
        else bool((_lengths((own - like).double()) <= ALIKE * whole).all())
        for own, like in zip(one.gradients, other.gradients, strict=True)
    )


def has_moved(
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    rates: Sequence[float],
    eps: Sequence[float],
) -> bool:
    """Whether plain SGD's step from ``before`` leads to ``after``, [clients, ...] each.

    The gradients are small beside the parameters, which round what is subtracted from them.
    """
    for start, end, gradient, rate, own in zip(before, after, gradients, rates, eps, strict=True):
        way = torch.zeros_like(start) if gradient is None else -rate * gradient
        if not is_close(end - start, way.to(start.dtype), own, _lengths_of_all([start, way])):
            return False
    return True


def is_half(eps: float) -> bool:
    """Whether it is the machine epsilon of a type that is coarser than float32."""
    return eps > torch.finfo(torch.float32).eps


def _lengths_of_all(tensors: Sequence[Tensor]) -> Tensor | float:
    """Each client's norm over several tensors, [clients], without what is not finite."""
    found = [_lengths(torch.where(t.isfinite(), t, 0.0).double()) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(found), dim=0) if found else 0.0


def _lengths(tensor: Tensor) -> Tensor:
    """Each client's norm, [clients]."""
    lengths: Tensor = torch.linalg.vector_norm(tensor.reshape(len(tensor), -1), dim=1)
    return lengths
