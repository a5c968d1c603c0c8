"""One client's training: from what a message asks for to the numbers in its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flwr.app import Message

from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError
from flsimulation.messages.content import RESERVED, config_of
from flsimulation.training import Trained


class Order(NamedTuple):
    """What a training message asks of a client."""

    partition: int
    round: int
    proximal_mu: float
    expires: float | None
    """Unix time in seconds after which nobody waits for the answer, if there is a deadline."""


def order_of(message: Message, partition: int, space: Workspace) -> Order:
    """Read a training message to the client of a partition."""
    config = config_of(message)
    round, mu = int(number(config, "server-round")), number(config, "proximal-mu")
    return Order(partition, round, mu, expires(message, space))


def fit_metrics(space: Workspace, partition: int, done: Trained) -> dict[str, float]:
    """The numbers in a trained client's answer. Raises `ClientError`."""
    return {
        **logged(done.scores),
        "num-examples": space.data.train_size(partition),
        "epochs": space.experiment.train.epochs,
        "steps": done.steps,
        "seconds": done.seconds,
    }


def evaluation_metrics(
    space: Workspace, partition: int, scores: Mapping[str, float]
) -> dict[str, float]:
    """The numbers in an evaluated client's answer. Raises `ClientError`."""
    return {**logged(scores), "num-examples": len(space.data.validation_indices(partition))}


def logged(scores: Mapping[str, float]) -> Mapping[str, float]:
    """What the module logged, unless it took a name that means something else in an answer.

    Raises
    ------
    ClientError
        If it did.
    """
    if taken := sorted(RESERVED & scores.keys()):
        raise ClientError("error", f"the module logs {taken[0]!r}, a name in use; log another")
    return scores


def number(config: Mapping[str, object], key: str) -> float:
    """A number among a message's settings; 0 if it is not there."""
    value = config.get(key, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def expires(message: Message, space: Workspace) -> float | None:
    """Unix time in seconds after which nobody waits for the answer, if there is a deadline."""
    if space.experiment.round.deadline == 0:
        return None
    return message.metadata.created_at + message.metadata.ttl
