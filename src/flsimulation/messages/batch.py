"""Batches of tasks for clients, and replies with the tasks' outcomes.

The only form in which work is sent between the server and its clients, on every runtime: in one
process a batch is a cohort, on Ray an actor's share of one, on a network a node's evaluation and
training. Metrics of many clients are sent as columns, one list per metric, so that the overhead per
client is negligible. `messages.codec` writes batches and replies as the content of Flower's messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from flwr.app import ArrayRecord, ConfigRecord

from flsimulation.errors import ClientError
from flsimulation.events import Phase
from flsimulation.host.warned import Warned
from flsimulation.messages.arrays import size_of
from flsimulation.messages.weights import mean_of

_NUMBER_BYTES = 8  # size of a number in a record


class Task(NamedTuple):
    """What one client does with the batch's model."""

    partition: int
    """The client's partition."""
    phase: Phase
    """``train``, an evaluation (``evaluate`` or ``final``), or ``facts`` of a site's data."""
    round: int
    """The round whose random draws it uses."""
    config: ConfigRecord
    """The strategy's settings; often the same object for all clients of a phase."""


@dataclass(frozen=True)
class Batch:
    """Tasks that begin with the same model, in the order of their execution."""

    model: ArrayRecord
    tasks: Sequence[Task]
    average: bool = False
    """Whether the reply should contain the mean of the clients' models instead of each one's."""
    expires: float | None = None
    """Unix time in seconds after which outcomes are too late; set by the receiver."""
    agreement: str = ""
    """What sites agreed on, as JSON; empty for other data, and before they did."""


class Outcome(NamedTuple):
    """The outcome of a task: metrics, and after training a model; or an error."""

    partition: int
    phase: Phase
    metrics: dict[str, float]
    """``num-examples``, ``loss`` and all else that the client reports; empty if it failed."""
    error: ClientError | None = None
    model: ArrayRecord | None = None
    """None after an evaluation, and if the reply has the mean."""
    states: ArrayRecord | None = None
    """States of the metric objects that an evaluation logged, as `training.states` names them; None
    without any, and in the ``final`` evaluation, which is not merged."""
    left_out: Mapping[str, str] = MappingProxyType({})
    """Scores that are not defined for the client, and why."""
    text: str = ""
    """The facts of its data as JSON, of the task ``facts``."""


class Mean(NamedTuple):
    """The mean of several clients' models, weighted by their examples unless all weigh the same."""

    model: ArrayRecord
    weight: int
    """Total number of examples of these clients; of the clients, if all weigh the same."""


@dataclass(frozen=True)
class Reply:
    """Outcomes of a batch's tasks: of all, or of some of them."""

    outcomes: Sequence[Outcome]
    mean: Mean | None = None
    """Mean of the models of successful trainings, if that was requested."""
    engine: str | None = None
    """The clients' engine, as in the manifest; None if not reported."""
    why_not: str | None = None
    """Why they are not trained stacked, if that was tried."""
    warned: Sequence[Warned] = ()
    """Warnings of a process that sends them, since its last reply."""


def joined(replies: Iterable[Reply]) -> Reply:
    """Several replies to one batch as one; its mean is the mean of their means.

    Parameters
    ----------
    replies : iterable of Reply
        The result has the engine of the last.
    """
    found = list(replies)
    last = found[-1] if found else Reply(())
    outcomes = [outcome for reply in found for outcome in reply.outcomes]
    means = [reply.mean for reply in found if reply.mean is not None]
    warned = tuple(warned for reply in found for warned in reply.warned)
    return Reply(outcomes, _mean(means), last.engine, last.why_not, warned)


def _mean(parts: Sequence[Mean]) -> Mean | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    models, weights = zip(*parts, strict=True)
    return Mean(mean_of(models, weights), sum(weights))


def batch_bytes(batch: Batch) -> int:
    """Payload of a batch for one client in bytes: the model, and the settings of each task."""
    return size_of(batch.model) + sum(size_of(task.config) for task in batch.tasks)


def outcome_bytes(outcome: Outcome) -> int:
    """Payload in bytes of an outcome in a separate reply, as Flower counts it."""
    numbers = sum(map(len, outcome.metrics)) + _NUMBER_BYTES * len(outcome.metrics)
    records = [record for record in (outcome.model, outcome.states) if record is not None]
    return numbers + sum(map(size_of, records))
