"""Products of float32 on a GPU: exact to float32's 23 bits, or faster with TF32's 10."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from flsimulation.experiment.spec import Train
from flsimulation.training.trainers import takes_gpu


def takes_tf32(spec: Train) -> bool:
    """Whether products are to be rounded: on a GPU only, whatever the CPU could do."""
    return spec.tf32 and takes_gpu(spec)


@contextlib.contextmanager
def in_tf32(wanted: bool) -> Iterator[None]:
    """Let a GPU multiply matrices in TF32 inside the block, if that is wanted.

    PyTorch has the setting twice; Lightning reads the older one, which PyTorch refuses to tell where
    only the newer was changed.
    """
    if not wanted:
        yield
        return
    kinds = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = torch.get_float32_matmul_precision(), [kind.fp32_precision for kind in kinds]
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        for kind, precision in zip(kinds, before[1], strict=True):
            kind.fp32_precision = precision  # the older setting changes a default, too
