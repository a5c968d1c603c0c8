"""What all waves of a cohort share, and what a round requests of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flsimulation.clock import Clock
from flsimulation.data.leaves import Leaves, leaves
from flsimulation.training.jobs import State
from flsimulation.training.stacked.compiler.program import StepPrograms
from flsimulation.training.stacked.eligible import Clip, Optimization
from flsimulation.training.stacked.standing import Graphs
from flsimulation.training.work import Work


@dataclass(frozen=True, eq=False)
class Stack:
    """What all waves of a cohort share."""

    programs: StepPrograms
    parameters: list[nn.Parameter]
    """The module's own, in the order of ``programs.trained``."""
    aliases: dict[str, str]
    """For each name of a parameter the one that stands for it; a tied one has several."""
    kinds: dict[str, torch.dtype]
    """Type of each tensor of the module's state_dict, in its order."""
    own_kinds: dict[str, torch.dtype]
    """The same in the precision of the training."""
    tensors: State
    """The module's parameters and buffers, also those that are not in its state_dict."""
    optimization: Callable[[int, int], Optimization]
    """Returns a new optimizer over `parameters`, and its schedulers, for a number of batches an
    epoch and the number of a round."""
    epochs: int
    accumulate: int
    """Batches for each step of the optimizer."""
    clips: tuple[Clip, ...]
    """Of each client's gradients, one after the other."""
    x: Leaves
    y: Leaves
    like: tuple[Leaves, Leaves]
    """Inputs and labels of a batch as the programs were traced for, [examples, ...]."""
    device: torch.device
    clock: Clock
    work: Work | None = None
    """What the clients do in all rounds; None if a program is always worth it."""
    transforms: bool = False
    """Whether a transform changes the batches, on the CPU."""
    scaled: bool = False
    """Whether losses are scaled before gradients are taken: in ``16-mixed``."""
    graphs: Graphs | None = None
    """Of the steps; on a GPU only."""

    @property
    def data(self) -> list[Tensor]:
        """The data set's tensors."""
        return [*leaves(self.x), *leaves(self.y)]


@dataclass(frozen=True)
class WaveTerms:
    """What one round requests of its clients."""

    start: State
    """The global model, on the stack's device."""
    rates: tuple[float, ...] | None
    """Learning rate of each parameter where the programs take plain SGD's steps themselves."""
    proximal_mu: float
    expires: float | None
    """Unix time in seconds after which to give up."""
    round: int
    """Its number."""
    rate_factor: float
    """On the learning rates; 1 where the programs take the steps."""
    waves: int
    """Waves of the round; they share the programs."""


def aliases(module: nn.Module) -> dict[str, str]:
    """For each name of a parameter the one that stands for it: that of the first of tied ones."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
