"""PyTorch's threads in processes that are forked.

A process that is forked from one whose OpenMP threads run waits for them for ever. So there is one
thread where processes are forked, and the usual number in the forks.
"""

from __future__ import annotations

import torch

_usual = torch.get_num_threads()


def hold() -> None:
    """Compute on one thread, in a process that forks others."""
    torch.set_num_threads(1)


def release() -> None:
    """Compute on as many threads as PyTorch takes by itself, in a fork."""
    torch.set_num_threads(_usual)
