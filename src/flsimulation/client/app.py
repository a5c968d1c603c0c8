"""The Flower ClientApp: answers batches, wherever it runs."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import TypeAlias

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flsimulation.client.answers import answers
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, RunError, describe_error
from flsimulation.experiment import Experiment, unflatten
from flsimulation.messages.batch import Batch, Outcome, Reply, joined
from flsimulation.messages.codec import batch_of, is_plain, reply_to
from flsimulation.messages.content import identity_reply
from flsimulation.messages.packing import is_packed, pack, unpack

Load: TypeAlias = Callable[[Context], Workspace]
"""Gives what a process works with, for the experiment of a message's context."""
Told: TypeAlias = Callable[[int, Batch, Reply], None]
"""Takes the run's id, a batch, and what came of it."""


def loaded(context: Context) -> Workspace:
    """The workspace of one client; it stays for the process's next message."""
    return _loaded(tuple(sorted(context.run_config.items())))


@functools.lru_cache(maxsize=1)
def _loaded(run_config: tuple[tuple[str, bool | float | int | str], ...]) -> Workspace:
    return Workspace.load(unflatten(dict(run_config)), clients=1)


def make_client_app(
    load: Load = loaded,
    told: Told | None = None,
    asked: Callable[[Experiment, int], str] | None = None,
    began: Callable[[int], None] | None = None,
) -> ClientApp:
    """A ClientApp for any of Flower's runtimes, and for Flower's own round loop.

    Parameters
    ----------
    load : callable
        Gives data, model and engine.
    told : callable, optional
        Is notified of every batch and what came of it, before the answer goes out.
    asked : callable, optional
        Is called with the experiment and the run's id when the server asks who is there: work is
        about to come. Returns what went wrong at this client before, "" if nothing did.
    began : callable, optional
        Is called with the partition of the first task before the work on a message begins.
    """

    def answer(message: Message, context: Context) -> Message:
        if packed := is_packed(message.content):
            message.content = unpack(message.content)
        batch = batch_of(message, _partition(message, context))
        if began is not None:
            began(batch.tasks[0].partition)
        reply = _reply(batch, load, context)
        if told is not None:
            told(context.run_id, batch, reply)
        answered = reply_to(message, reply)
        if packed:
            answered.content = pack(answered.content)
        return answered

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        trouble = asked(unflatten(context.run_config), context.run_id) if asked is not None else ""
        name = str(context.node_config.get("name", context.node_id))
        return identity_reply(message, name, _configured_partition(context), trouble)

    return app


def _reply(batch: Batch, load: Load, context: Context) -> Reply:
    """What came of all the batch's tasks; of none if data or model are not there."""
    try:
        return joined(answers(batch, load(context)))
    except Exception as error:
        traceback.print_exc()  # the log has all of it, the server one line
        why = ClientError("error", describe_error(error))
        return Reply([Outcome(task.partition, task.phase, {}, why) for task in batch.tasks])


def _partition(message: Message, context: Context) -> int | None:
    """The partition of this node, where the message does not say whose it is."""
    partition = _configured_partition(context)
    if partition is None and is_plain(message):
        raise RunError("it was told no partition; set partition-id in its node config")
    return partition


def _configured_partition(context: Context) -> int | None:
    configured = context.node_config.get("partition-id")
    return None if configured is None else int(configured)


app = make_client_app()
"""The ClientApp that Flower's runtimes load."""
