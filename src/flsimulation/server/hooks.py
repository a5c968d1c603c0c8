"""Between Flower's strategies, whose hooks speak in messages to nodes, and tasks of clients."""

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
    """What a strategy's messages ask of the clients, by the model that they begin with.

    Parameters
    ----------
    round, phase
        The tasks'.
    messages : mapping
        By partition.
    model : ArrayRecord, optional
        Goes out in place of the messages' own, which lack the buffers.
    average : bool
        Whether the mean of the clients' models will do.
    """
    read: dict[int, tuple[ConfigRecord, list[Task]]] = {}  # by content, which many share
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
