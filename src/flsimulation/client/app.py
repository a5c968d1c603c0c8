"""The Flower ClientApp: one client's part in a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from flsimulation.client.cohort import Asked, evaluate_together, train_together
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, RunError
from flsimulation.experiment import Experiment, unflatten
from flsimulation.messages.content import (
    assigned_partition,
    config_of,
    evaluation_asked,
    failure,
    identity_reply,
    reply_both,
)
from flsimulation.messages.packing import is_packed, pack, unpack

Told: TypeAlias = Callable[[int, Message, Message], None]
"""Takes partition, message and answer."""
Work: TypeAlias = Callable[[Message, ConfigRecord, int, Workspace], Message]
"""Makes the answer of message, settings, partition and workspace."""


def make_client_app(
    workspace: Workspace | Callable[[Experiment, int], Workspace] | None = None,
    told: Told | None = None,
    asked: Callable[[Experiment, int], str] | None = None,
    began: Callable[[int], None] | None = None,
) -> ClientApp:
    """A ClientApp for any of Flower's runtimes.

    Parameters
    ----------
    workspace : Workspace or callable, optional
        Data and trainer that this process has already, or what gets them for an experiment and a
        run's id; without it they are loaded from the run config with the first message.
    told : callable, optional
        Is told every message with its answer, before the answer goes out.
    asked : callable, optional
        Is called with the experiment and the run's id when the server asks who is there: work is
        about to come. Returns what went wrong at this client before, "" if nothing did.
    began : callable, optional
        Is called with the partition before the work on a message begins.
    """
    loaded = {"workspace": workspace} if isinstance(workspace, Workspace) else {}
    load = workspace if callable(workspace) else None

    def workspace_of(context: Context) -> Workspace:
        if "workspace" not in loaded:
            experiment = unflatten(context.run_config)
            loaded["workspace"] = (
                load(experiment, context.run_id) if load else Workspace.load(experiment, clients=1)
            )
        return loaded["workspace"]

    def answer(message: Message, context: Context, work: Work) -> Message:
        if packed := is_packed(message.content):
            message.content = unpack(message.content)
        partition = partition_of(message, context)
        if began is not None:
            began(partition)

        def attempt(work: Work, config: ConfigRecord) -> Message:
            try:
                return work(message, config, partition, workspace_of(context))
            except ClientError as error:  # an answer too: the server counts it and names it
                return failure(message, error)

        # The model as it comes is evaluated before it is trained, if both are asked for.
        evaluation = evaluation_asked(message)
        evaluated = None if evaluation is None else attempt(_evaluate, evaluation)
        answered = attempt(work, config_of(message))
        if evaluated is not None:
            answered = reply_both(message, answered, evaluated)
        if told is not None:
            told(partition, message, answered)
        if packed and answered.has_content():
            answered.content = pack(answered.content)
        return answered

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, _train)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, _evaluate)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        trouble = asked(unflatten(context.run_config), context.run_id) if asked is not None else ""
        name = str(context.node_config.get("name", context.node_id))
        return identity_reply(message, name, _configured_partition(context), trouble)

    return app


def partition_of(message: Message, context: Context) -> int:
    """The partition that this node holds: what the server says, else its own configuration."""
    for partition in (assigned_partition(message), _configured_partition(context)):
        if partition is not None:
            return partition
    raise RunError("it was told no partition; set partition-id in its node config")


def _configured_partition(context: Context) -> int | None:
    configured = context.node_config.get("partition-id")
    return None if configured is None else int(configured)


def _train(message: Message, _: ConfigRecord, partition: int, workspace: Workspace) -> Message:
    ((answered,),) = train_together([Asked(message, partition)], workspace)
    return answered


def _evaluate(
    message: Message, config: ConfigRecord, partition: int, workspace: Workspace
) -> Message:
    ((answered,),) = evaluate_together([Asked(message, partition)], workspace, config)
    return answered


app = make_client_app()
"""The ClientApp that Flower's runtimes load."""
