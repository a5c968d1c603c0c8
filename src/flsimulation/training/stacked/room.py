"""How many clients have room in a wave: in a core's caches, or in a GPU's memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flsimulation.data.leaves import Leaves, each, nbytes
from flsimulation.training.stacked.compiler.program import StepPrograms

_GPU_SHARE = 2  # of a GPU's free memory for a wave: the rest is for evaluations, and for gaps
_MEASURED = (2, 6)  # clients: the difference tells what each takes from what any number does


class Room(NamedTuple):
    """The memory of a wave."""

    bytes: int
    fixed: int = 0
    """Bytes that a step takes for any number of clients, such as a library's workspace."""
    each: int = 0
    """Bytes that a step takes for each client beside its parameters."""

    def clients(self, parameters: int) -> int:
        """How many clients have room, at least 1, with so many bytes of parameters each."""
        return max(1, (self.bytes - self.fixed) // max(1, parameters + self.each))


def room_on_gpu(
    programs: StepPrograms, examples: int, rates: tuple[float, ...] | None, device: torch.device
) -> Room:
    """The room in a GPU's free memory, by what programs for a few clients take.

    Parameters
    ----------
    programs : StepPrograms
        Of the step.
    examples : int
        Of the largest batch.
    rates : tuple of float, optional
        Learning rates where programs take the steps themselves.
    device : device
        The GPU.
    """
    few, many = (_peak(programs, clients, examples, rates, device) for clients in _MEASURED)
    each = max(0, -(-(many - few) // (_MEASURED[1] - _MEASURED[0])))
    torch.cuda.empty_cache()  # PyTorch's own reserve counts as taken
    free = torch.cuda.mem_get_info(device)[0]
    return Room(free // _GPU_SHARE, max(0, few - _MEASURED[0] * each), each)


def _peak(
    programs: StepPrograms,
    clients: int,
    examples: int,
    rates: tuple[float, ...] | None,
    device: torch.device,
) -> int:
    """Most bytes that a program takes beside its inputs: made, compared in float64, and run."""
    given = programs.given(clients, examples)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.no_grad():
        programs.program(clients, examples, rates)(given)
    return torch.cuda.max_memory_allocated(device) - before


def kept_on(device: torch.device, share: int, x: Leaves, y: Leaves) -> tuple[Leaves, Leaves]:
    """A part of a data set on a GPU, if it fits in this share of its free memory, else as it is.

    Parameters
    ----------
    device : device
        The GPU, or the CPU, where it is already.
    share : int
        1 / share of the free memory may be taken.
    x, y : Tensor or dict of Tensor
        Inputs and targets, [n, ...].
    """
    if device.type == "cpu":
        return x, y
    if nbytes(x) + nbytes(y) > torch.cuda.mem_get_info(device)[0] // share:
        return x, y

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    return each(there, x), each(there, y)
