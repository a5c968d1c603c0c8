"""What engines take and return: jobs, the terms of a call, results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from torch import Tensor

from flsimulation.errors import ClientError
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


class Terms(NamedTuple):
    """What holds for all jobs of a call."""

    proximal_mu: float = 0.0
    """Weight of FedProx's term mu/2 |w - w_global|^2; 0 for none."""
    expires: float | None = None
    """Unix time in seconds after which a result is too late."""
    average: bool = False
    """Whether only the mean of the clients' models is wanted; an engine may ignore it."""


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


class Fitted(NamedTuple):
    """Clients whose training ended together: one, or many of a wave."""

    results: Mapping[int, Trained | ClientError]
    """By partition."""
    mean: State | None = None
    """The mean model of those that succeeded, weighted by examples, on the CPU, if the terms ask
    for it and the engine averages."""


Scored: TypeAlias = Mapping[int, dict[str, float] | ClientError]
"""Scores of clients that were evaluated together, or why there are none, by partition."""
