"""The Flower ClientApp: one client's part in a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flsimulation import seeds
from flsimulation.apps.workspace import Workspace
from flsimulation.errors import ClientError
from flsimulation.experiment import unflatten
from flsimulation.messages import RESERVED, config_of, failure, reply, state_of


def make_client_app(workspace: Workspace | None = None) -> ClientApp:
    """A ClientApp for any of Flower's runtimes.

    Parameters
    ----------
    workspace : Workspace, optional
        Data and trainer that this process has already; without it they are loaded from the run
        config with the first message.
    """
    loaded = {} if workspace is None else {"workspace": workspace}

    def workspace_of(context: Context) -> Workspace:
        if "workspace" not in loaded:
            loaded["workspace"] = Workspace.load(unflatten(context.run_config))
        return loaded["workspace"]

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answered(message, lambda: _train(message, context, workspace_of(context)))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answered(message, lambda: _evaluate(message, context, workspace_of(context)))

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return reply(message, {"partition-id": partition_of(context)})

    return app


def partition_of(context: Context) -> int:
    """The partition that this node holds."""
    return int(context.node_config["partition-id"])


def _train(message: Message, context: Context, workspace: Workspace) -> Message:
    partition, config = partition_of(context), config_of(message)
    round = int(_number(config, "server-round"))
    spec = workspace.experiment
    batches = workspace.train_batches(partition, round)
    fit = workspace.trainer.fit(
        state_of(message),
        batches,
        seed=seeds.integer(spec.seed, "fit", round, partition),
        validation=workspace.validation_batches(partition) if spec.train.validate_ else None,
        proximal_mu=_number(config, "proximal-mu"),
        expires=_expires(message, workspace),
    )
    metrics = {
        **_logged(fit.scores),
        "num-examples": batches.examples,
        "epochs": spec.train.epochs,
        "steps": fit.steps,
        "seconds": fit.seconds,
    }
    return reply(message, metrics, fit.state)


def _evaluate(message: Message, context: Context, workspace: Workspace) -> Message:
    partition, round = partition_of(context), int(_number(config_of(message), "server-round"))
    batches = workspace.validation_batches(partition)
    scores = workspace.trainer.evaluate(
        state_of(message),
        batches,
        seed=seeds.integer(workspace.experiment.seed, "evaluate", round, partition),
        expires=_expires(message, workspace),
    )
    return reply(message, {**_logged(scores), "num-examples": batches.examples})


def _logged(scores: Mapping[str, float]) -> Mapping[str, float]:
    """What the module logged, unless it took a name that means something else in an answer."""
    if taken := sorted(RESERVED & scores.keys()):
        raise ClientError("error", f"the module logs {taken[0]!r}, a name in use; log another")
    return scores


def _answered(message: Message, work: Callable[[], Message]) -> Message:
    """The work's answer, or its failure as an answer: the server counts it and names it."""
    try:
        return work()
    except ClientError as error:
        return failure(message, error)


def _number(config: Mapping[str, object], key: str) -> float:
    value = config.get(key, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _expires(message: Message, workspace: Workspace) -> float | None:
    """Unix time in seconds after which nobody waits for the answer, if there is a deadline."""
    if workspace.experiment.round.deadline == 0:
        return None
    return message.metadata.created_at + message.metadata.ttl


app = make_client_app()
"""The ClientApp that Flower's runtimes load."""
