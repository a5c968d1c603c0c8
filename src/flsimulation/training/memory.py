"""Memory that was too small: how such an error is recognised, and what its handler frees."""

from __future__ import annotations

import gc
import re

import torch

TOO_SMALL = re.compile(
    r"out of memory|can't allocate memory|not enough memory|_ALLOC_FAILED|\bMemoryError\b",
    re.IGNORECASE,
)
"""In an error's text: of CUDA, of PyTorch's allocator of the CPU, of CUDA's libraries, of Python."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a computation failed only because memory was too small, of a GPU or of the machine.

    A program of TorchScript raises a plain RuntimeError with the text of the error inside it.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and TOO_SMALL.search(str(error)) is not None


def free_unused() -> None:
    """Free what an error's frames held, also on the GPU. Call it when the error is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
