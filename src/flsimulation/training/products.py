"""Products and convolutions of float32 on a GPU: exact to float32's 23 bits, or faster with TF32's 10."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from flsimulation.experiment.spec import Train
from flsimulation.training.trainers import takes_gpu


def takes_tf32(spec: Train) -> bool | None:
    """Whether products are to be rounded, on a GPU; None on a CPU, whatever it could do."""
    return spec.tf32 if takes_gpu(spec) else None


@contextlib.contextmanager
def in_tf32(wanted: bool | None) -> Iterator[None]:
    """Let a GPU multiply and convolve in TF32 inside the block, or neither.

    Products of matrices are left as a user's code has set them, if TF32 is not wanted: PyTorch does not
    round them of itself, but convolutions. These also add up in one order here, so that a run has the
    same bits again, and a graph those of the calls.
    """
    if wanted is None:
        yield
        return
    with _restored():
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = wanted
        if wanted:
            torch.set_float32_matmul_precision("high")
        yield


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Put the settings back after the block.

    PyTorch has each twice; Lightning reads the older ones, which PyTorch refuses to tell where only
    the newer were changed.
    """
    backends: Any = torch.backends
    cudnn = backends.cudnn
    kinds = backends.cuda.matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn
    products, deterministic = torch.get_float32_matmul_precision(), cudnn.deterministic
    precisions = [kind.fp32_precision for kind in kinds]
    # The older setting of convolutions, which PyTorch does not tell where its newer ones differ.
    older = all(precision in ("none", "tf32") for precision in precisions[2:])
    try:
        yield
    finally:
        cudnn.deterministic = deterministic
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32 = older
        for kind, precision in zip(kinds, precisions, strict=True):
            kind.fp32_precision = precision  # the older setting changes a default, too
