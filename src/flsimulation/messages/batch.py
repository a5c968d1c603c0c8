"""Many tasks for one place in one message, and what came of them.

The only form in which work travels between the server and its clients, whatever carries it: in one
process a batch is a cohort, on Ray an actor's share of one, on a network a node's evaluation and
training. What many clients report travels as columns, a list for each number, so that a client
costs next to nothing. `messages.codec` writes both as the content of Flower's messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flwr.app import ArrayRecord, ConfigRecord

from flsimulation.errors import ClientError
from flsimulation.events import Phase
from flsimulation.messages.arrays import size_of
from flsimulation.messages.weights import mean_of

_NUMBER_BYTES = 8  # of a number in a record


class Task(NamedTuple):
    """What one client has to do with the batch's model."""

    partition: int
    """The client."""
    phase: Phase
    """``train``, or an evaluation: ``evaluate`` or ``final``."""
    round: int
    """Whose random draws it uses."""
    config: ConfigRecord
    """The strategy's settings; often the same object for all clients of a phase."""


@dataclass(frozen=True)
class Batch:
    """Tasks that begin with the same model, in the order in which they are to be done."""

    model: ArrayRecord
    tasks: Sequence[Task]
    average: bool = False
    """Whether the mean of the clients' models is wanted in place of each one's."""
    expires: float | None = None
    """Unix time in seconds after which nobody waits for an outcome; set where it arrives."""


class Outcome(NamedTuple):
    """What came of a task: numbers, and after training a model; or an error."""

    partition: int
    phase: Phase
    metrics: dict[str, float]
    """``num-examples``, ``loss`` and whatever else the client reports; empty if it failed."""
    error: ClientError | None = None
    model: ArrayRecord | None = None
    """None after an evaluation, and where the reply has the mean."""


class Mean(NamedTuple):
    """The mean of several clients' models, weighted by their examples."""

    model: ArrayRecord
    examples: int
    """Behind it, of all of them together."""


@dataclass(frozen=True)
class Reply:
    """Outcomes of a batch's tasks: of all, or of those that are done so far."""

    outcomes: Sequence[Outcome]
    mean: Mean | None = None
    """Of the trainings that succeeded, where that was asked for."""
    engine: str | None = None
    """What the clients compute with, as in the manifest; None if they do not say."""
    why_not: str | None = None
    """Why they are not trained stacked, where that was tried."""


def joined(replies: Iterable[Reply]) -> Reply:
    """Several replies to one batch as one; the mean is that of all their means.

    Parameters
    ----------
    replies : iterable of Reply
        The engine is that of the last.
    """
    found = list(replies)
    last = found[-1] if found else Reply(())
    outcomes = [outcome for reply in found for outcome in reply.outcomes]
    means = [reply.mean for reply in found if reply.mean is not None]
    return Reply(outcomes, _mean(means), last.engine, last.why_not)


def _mean(parts: Sequence[Mean]) -> Mean | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    models, examples = zip(*parts, strict=True)
    return Mean(mean_of(models, examples), sum(examples))


def batch_bytes(batch: Batch) -> int:
    """Payload of a batch for one client: the model, and the settings of each task."""
    return size_of(batch.model) + sum(size_of(task.config) for task in batch.tasks)


def outcome_bytes(outcome: Outcome) -> int:
    """Payload of an outcome that a client sends by itself, as Flower counts it."""
    numbers = sum(map(len, outcome.metrics)) + _NUMBER_BYTES * len(outcome.metrics)
    return numbers + (size_of(outcome.model) if outcome.model is not None else 0)
