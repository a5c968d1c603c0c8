"""Outcomes of the tasks of one phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message

from flsimulation.errors import ClientError, kind_of
from flsimulation.events import Phase
from flsimulation.messages.arrays import size_of
from flsimulation.messages.batch import Batch, Mean, Outcome
from flsimulation.messages.codec import plain_reply

_NAMED_FAILURES = 3  # most causes in the message of a failed round


@dataclass
class Replies:
    """The outcomes of one phase, added as they arrive."""

    round: int
    phase: Phase
    cohort: tuple[int, ...] = ()
    """Partitions that have a task, ascending."""
    messages: Mapping[int, Message] = field(default_factory=dict)
    """The strategy's own message to each client, by partition."""
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics of the clients that succeeded, by partition."""
    models: dict[int, ArrayRecord] = field(default_factory=dict)
    """Their models, if each was sent separately, by partition."""
    means: dict[int, Mean] = field(default_factory=dict)
    """Mean models of clients that trained together, by the lowest of their partitions."""
    states: dict[int, ArrayRecord] = field(default_factory=dict)
    """States of metric objects that they logged in an evaluation, by partition."""
    left_out: dict[int, Mapping[str, str]] = field(default_factory=dict)
    """Scores that are not defined for a client, and why, by partition."""
    texts: dict[int, str] = field(default_factory=dict)
    """Facts of the sites' data as JSON, by partition."""
    failures: dict[int, ClientError] = field(default_factory=dict)
    """Why the other clients failed, by partition."""
    bytes_down: int = 0
    """Total payload of the messages, as if each client got a separate one."""
    bytes_up: int = 0
    """Total payload of the replies, as if each client sent a separate one."""

    @property
    def missing(self) -> list[int]:
        """Partitions without an outcome yet, ascending."""
        known = self.metrics.keys() | self.failures.keys()
        return [partition for partition in self.cohort if partition not in known]

    @property
    def is_complete(self) -> bool:
        """Whether every task has an outcome."""
        return len(self.metrics) + len(self.failures) == len(self.cohort)

    def forget_models(self) -> None:
        """Drop the clients' models, which are large and not needed after the aggregation."""
        self.models.clear()
        self.means.clear()
        self.messages = {}

    def named_failures(self) -> str:
        """The failures in one line; those with one cause are told once."""
        kinds: dict[str, list[int]] = {}
        for partition in sorted(self.failures):
            kinds.setdefault(kind_of(str(self.failures[partition])), []).append(partition)
        named = [self._named(partitions) for partitions in kinds.values()]
        more = sum(len(partitions) for partitions in [*kinds.values()][_NAMED_FAILURES:])
        return "; ".join(named[:_NAMED_FAILURES]) + (f"; and {more} more" if more else "")

    def _named(self, partitions: list[int]) -> str:
        first, count = partitions[0], len(partitions)
        if count == 1:
            return f"client {first}: {self.failures[first]}"
        who = f"all {count}" if count == len(self.cohort) else f"{count}"
        alike = len({str(self.failures[partition]) for partition in partitions}) == 1
        return f"{who} clients{'' if alike else f', as client {first}'}: {self.failures[first]}"

    def names(self) -> tuple[list[str], list[str]]:
        """Names of the metrics that all successful clients have, and those that only some have."""
        metrics = self.metrics.values()
        first = next(iter(metrics), {})
        if all(own.keys() == first.keys() for own in metrics):
            return list(first), []
        every = dict.fromkeys(name for own in metrics for name in own)
        counts = Counter(name for own in metrics for name in own)
        shared = [name for name in every if counts[name] == len(metrics)]
        return shared, [name for name in every if counts[name] < len(metrics)]

    def results(self) -> list[Message]:
        """The successful clients' replies, as Flower's strategies expect them.

        They are in the order of partitions, not of arrival, and new objects in every call. They have
        only the metrics that all clients have: Flower averages no others.
        """
        shared, others = self.names()
        return [
            plain_reply(
                self.messages[partition],
                Outcome(
                    partition,
                    self.phase,
                    {name: own[name] for name in shared} if others else own,
                    None,
                    self.models.get(partition),
                ),
            )
            for partition, own in sorted(self.metrics.items())
        ]


def count_down(batch: Batch, takers: Mapping[Phase, Replies]) -> None:
    """Count the payload of a separate message per client: the model once, for its last task."""
    model = size_of(batch.model)
    sizes: dict[int, int] = {}  # of settings, which many clients share
    last = {task.partition: task.phase for task in batch.tasks}
    for task in batch.tasks:
        if (settings := id(task.config)) not in sizes:
            sizes[settings] = size_of(task.config)
        takers[task.phase].bytes_down += sizes[settings]
    for phase in last.values():
        takers[phase].bytes_down += model


def failures_of(*phases: Replies) -> dict[str, int]:
    """Failed outcomes of several phases, counted by reason."""
    reasons: Counter[str] = Counter(
        error.reason for replies in phases for error in replies.failures.values()
    )
    return dict(sorted(reasons.items()))


def traffic_of(*phases: Replies) -> dict[str, int]:
    """Payload of the messages of several phases."""
    return {
        "down": sum(replies.bytes_down for replies in phases),
        "up": sum(replies.bytes_up for replies in phases),
    }
