"""What engines take and return: jobs, the terms of a call, results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from torch import Tensor

from flsimulation.errors import ClientError
from flsimulation.privacy.transforms import Noise
from flsimulation.training.batches import Batches

State: TypeAlias = dict[str, Tensor]
"""A module's state_dict: parameters and buffers by name."""


class Job(NamedTuple):
    """What one client has to compute on."""

    partition: int
    batches: Batches
    """Its training part, or its held-out part."""
    seed: Callable[[], int]
    """Returns the seed of the random draws inside the module; drawn only where it is used."""
    validation: Batches | None = None
    """What a module's validation loop runs on after each epoch of a fit, if that is requested."""
    round: int = 0
    """Number of the round, from 1; the module's ``federated_round``. 0 before the first."""
    noise: Noise | None = None
    """Returns the generator of the noise on its update, if the terms have noise."""


class Terms(NamedTuple):
    """What holds for all jobs of a call."""

    proximal_mu: float = 0.0
    """Weight of FedProx's term mu/2 |w - w_global|^2; 0 for none."""
    expires: float | None = None
    """Unix time in seconds after which a result is too late."""
    average: bool = False
    """Whether only the mean of the clients' models is wanted; an engine may ignore it."""
    clip: float = 0.0
    """Largest L2 norm of a client's update, to which a longer one is scaled; 0 for any. In a mean of
    clipped updates without noise all clients weigh the same."""
    noise: float = 0.0
    """Standard deviation of the noise on each number of a clipped update; 0 for none."""


class Trained(NamedTuple):
    """What one client's training came to."""

    scores: dict[str, float]
    """``loss`` (mean over the last epoch's examples) and all that the module logged."""
    steps: int
    """Optimizer steps."""
    seconds: float
    """Of the client, or its share of the time of those that were trained together."""
    state: State
    """The module's parameters and buffers afterwards, on the CPU; empty where only the mean of
    many was requested."""
    is_whole: bool | None = None
    """Whether its update was not longer than the terms allow; None if they allow any length."""


class Fitted(NamedTuple):
    """Clients whose training ended together: one, or many of a wave."""

    results: Mapping[int, Trained | ClientError]
    """By partition."""
    mean: State | None = None
    """The mean model of those that succeeded, weighted by examples, or by none where updates are
    clipped; on the CPU, if the terms ask for it and the engine averages."""


Scored: TypeAlias = Mapping[int, dict[str, float] | ClientError]
"""Scores of clients that were evaluated together, or why there are none, by partition."""
