"""Converts the messages to nodes of Flower's strategies to tasks of clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message

from flsimulation.events import Phase
from flsimulation.messages.batch import Batch, Task
from flsimulation.messages.content import config_of, model_of


def by_partition(messages: Iterable[Message], partitions: Mapping[int, int]) -> dict[int, Message]:
    """A strategy's messages by the partitions that their nodes hold, ascending."""
    found = {partitions[message.metadata.dst_node_id]: message for message in messages}
    return dict(sorted(found.items()))


def batches_of(
    round: int,
    phase: Phase,
    messages: Mapping[int, Message],
    model: ArrayRecord | None = None,
    *,
    average: bool = False,
) -> list[Batch]:
    """The batches of a strategy's messages, one per model that tasks begin with.

    Parameters
    ----------
    round, phase
        Round and phase of the tasks.
    messages : mapping
        The messages by partition.
    model : ArrayRecord, optional
        Sent in place of the messages' own model, which has no buffers.
    average : bool
        Whether to request the mean of the clients' models.
    """
    read: dict[int, tuple[ConfigRecord, list[Task]]] = {}  # by content, which messages may share
    models: dict[int, tuple[ArrayRecord, list[Task]]] = {}
    for partition, message in messages.items():
        content = message.content
        if (known := read.get(id(content))) is None:
            own = model_of(message) if model is None else model
            _, tasks = models.setdefault(id(own), (own, []))
            known = read[id(content)] = config_of(message), tasks
        config, tasks = known
        tasks.append(Task(partition, phase, round, config))
    return [Batch(own, tasks, average) for own, tasks in models.values()]
