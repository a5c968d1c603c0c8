"""Who computes: what every engine takes and returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

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
    seed: int
    """Of the random draws inside the module."""
    validation: Batches | None = None
    """What a module's validation loop runs on after each epoch of a fit, if that is asked for."""


class Terms(NamedTuple):
    """What holds for all jobs of a call."""

    proximal_mu: float = 0.0
    """Weight of FedProx's term mu/2 |w - w_global|^2; 0 for none."""
    expires: float | None = None
    """Unix time in seconds after which nobody waits for the result."""
    average: bool = False
    """Whether only the mean of the clients' models is wanted; an engine may ignore it."""


class Trained(NamedTuple):
    """What one client's training came to, beside its model."""

    scores: dict[str, float]
    """``loss`` (mean over the last epoch's examples) and whatever the module logged."""
    steps: int
    """Optimizer steps."""
    seconds: float
    """Of the client, or its share of the time of those that were trained together."""


@dataclass(frozen=True)
class Fitted:
    """Clients whose training ended together: one, or many of a wave."""

    results: Mapping[int, Trained | ClientError]
    """By partition."""
    models: Mapping[int, State] = field(default_factory=dict)
    """Of those that succeeded, on the CPU, by partition; empty where there is a mean."""
    mean: State | None = None
    """The mean model of those that succeeded, weighted by examples, where the terms ask for it."""


Scored: TypeAlias = Mapping[int, dict[str, float] | ClientError]
"""Scores of clients that were evaluated together, or why there are none, by partition."""


class Engine(Protocol):
    """Trains and evaluates clients from a global model.

    A client that fails is a result, a `ClientError`, and does not touch the others. What ends a
    call as a whole (an engine that does not fit the model after all) is a `RunError`.
    """

    @property
    def name(self) -> str:
        """``stacked`` or ``sequential``, as in the manifest."""

    @property
    def why_not(self) -> str | None:
        """Why clients are not trained stacked, where that was tried."""

    @property
    def averages(self) -> bool:
        """Whether it can return the mean of its clients' models in place of each one's."""

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it computes on."""

    @property
    def can_evaluate(self) -> bool:
        """Whether the module has a ``validation_step`` (or a ``test_step``)."""

    def fit(self, model: State, jobs: Sequence[Job], terms: Terms) -> Iterator[Fitted]:
        """Train each client from the same global model, which is not changed.

        Yields what is done as it is done; every job is in one of the results.
        """

    def evaluate(
        self, model: State, jobs: Sequence[Job], expires: float | None = None
    ) -> Iterator[Scored]:
        """Score the model, which is not changed, on each job's batches, as they are done."""

    def close(self) -> None:
        """End what was started; the engine may be used again."""
