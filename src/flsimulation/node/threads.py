"""The number of PyTorch's threads in processes that fork, and in their forks.

A process that is forked from one with running OpenMP threads waits for them forever. So a process
that forks uses one thread, and its forks use the default number.
"""

from __future__ import annotations

import torch

_default = torch.get_num_threads()


def hold() -> None:
    """Compute on one thread; called in a process that forks others."""
    torch.set_num_threads(1)


def release() -> None:
    """Compute on PyTorch's default number of threads; called in a fork."""
    torch.set_num_threads(_default)
