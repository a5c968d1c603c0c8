"""Each client's scores of the final model."""

from __future__ import annotations

import itertools

from flwr.app import ConfigRecord

from flsimulation.client.workspace import Workspace
from flsimulation.events import ClientReplied, Sink
from flsimulation.messages.batch import Batch, Task
from flsimulation.server.exchange import Exchange
from flsimulation.server.notices import Notices
from flsimulation.server.replies import Replies
from flsimulation.server.rounds import Ended


def evaluate_everyone(
    exchange: Exchange, ended: Ended, space: Workspace, emit: Sink, notices: Notices
) -> None:
    """Each client's scores of the final model; evaluated again only if they are not known."""
    arrays, evaluated, last = ended
    wanted = space.experiment.evaluate.clients
    there = exchange.grid.partitions.values()  # ascending
    partitions = list(itertools.islice(there, wanted))
    if {*partitions} <= {*evaluated.cohort}:
        for partition in partitions:
            emit(_as_final(last, partition, evaluated))
        return
    config = ConfigRecord({"server-round": last})
    tasks = [Task(partition, "final", last, config) for partition in partitions]
    replies = exchange.post(last, "final", [Batch(arrays, tasks)])
    for _ in exchange.outcomes():
        pass  # each is an event
    notices.left_out(replies)


def _as_final(round: int, partition: int, evaluated: Replies) -> ClientReplied:
    if (error := evaluated.failures.get(partition)) is not None:
        return ClientReplied(round, "final", partition, reason=error.reason, error=str(error))
    return ClientReplied(round, "final", partition, evaluated.metrics[partition])
