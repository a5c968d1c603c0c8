"""The Flower ClientApp: replies to batches, on every runtime."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Protocol, TypeAlias

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from flsimulation.client.answers import answers
from flsimulation.client.vault import KeptVault, Vault
from flsimulation.client.workspace import Workspace
from flsimulation.data.sites.site_facts import SiteFacts
from flsimulation.errors import ClientError, FLSimulationError, RunError, describe_error
from flsimulation.experiment import Experiment, unflatten
from flsimulation.messages.batch import Batch, Outcome, Reply, joined
from flsimulation.messages.codec import batch_of, is_plain, reply_to
from flsimulation.messages.content import identity_reply
from flsimulation.messages.packing import is_packed, pack, unpack

Load: TypeAlias = Callable[[Context], Workspace]
"""Returns the workspace of the experiment in a message's context."""
Replied: TypeAlias = Callable[[int, Batch, Reply], None]
"""Called with the run's id, a batch, and the reply to it."""


class Site(Protocol):
    """A site whose data only this client reads."""

    def partition(self, experiment: Experiment) -> tuple[int | None, str]:
        """The site's partition, and why it has none as the end of a sentence."""

    def facts(self, experiment: Experiment) -> SiteFacts:
        """What the site reports of its data. Raises `DataError`."""

    def workspace(self, context: Context, agreement: str) -> Workspace:
        """The workspace with the site's data, encoded as the sites agreed. Raises `InputError`."""


def loaded(context: Context) -> Workspace:
    """The workspace of one client; it is kept for the process's next message."""
    return _loaded(tuple(sorted(context.run_config.items())))


@functools.lru_cache(maxsize=1)
def _loaded(run_config: tuple[tuple[str, bool | float | int | str], ...]) -> Workspace:
    return Workspace.load(unflatten(dict(run_config)), clients=1)


def make_client_app(
    load: Load = loaded,
    replied: Replied | None = None,
    queried: Callable[[Experiment, int], str] | None = None,
    began: Callable[[int], None] | None = None,
    site: Site | None = None,
    vault: Callable[[Experiment], Vault] | None = None,
) -> ClientApp:
    """A ClientApp for any of Flower's runtimes, and for Flower's own round loop.

    Parameters
    ----------
    load : callable
        Returns data, model and engine.
    replied : callable, optional
        Called with every batch and the reply to it, before the reply is sent.
    queried : callable, optional
        Called with the experiment and the run's id when the server requests this client's name:
        tasks will follow. Returns what went wrong at this client before, "" if nothing did.
    began : callable, optional
        Called with the partition of the first task before a message is processed.
    site : Site, optional
        Reads this client's own data where the experiment has sites.
    vault : callable, optional
        Returns what keeps the clients' secrets of secure aggregation; by default Flower's state of this
        client does, for as long as a round.
    """

    def answer(message: Message, context: Context) -> Message:
        if packed := is_packed(message.content):
            message.content = unpack(message.content)
        batch = batch_of(message, _partition(message, context))
        if began is not None:
            began(batch.tasks[0].partition)
        kept = (
            vault(unflatten(context.run_config)) if vault is not None else KeptVault(context.state)
        )
        reply = _reply(batch, load, context, site, kept)
        if replied is not None:
            replied(context.run_id, batch, reply)
        outgoing = reply_to(message, reply)
        if packed:
            outgoing.content = pack(outgoing.content)
        return outgoing

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        experiment = unflatten(context.run_config)
        trouble = queried(experiment, context.run_id) if queried is not None else ""
        name = str(context.node_config.get("name", context.node_id))
        partition = _configured_partition(context)
        if site is not None and experiment.data.of_sites:
            partition, _ = site.partition(experiment)
        return identity_reply(message, name, partition, trouble)

    return app


def _reply(batch: Batch, load: Load, context: Context, site: Site | None, vault: Vault) -> Reply:
    """The outcomes of all the batch's tasks; errors if data or model are not available."""
    try:
        if batch.agreement or batch.tasks[0].phase == "facts":
            return _of_site(batch, context, site, vault)
        return joined(answers(batch, load(context), vault))
    except Exception as error:
        traceback.print_exc()  # the log has the whole traceback, the server one line
        why = ClientError("error", describe_error(error))
        return Reply([Outcome(task.partition, task.phase, {}, why) for task in batch.tasks])


def _of_site(batch: Batch, context: Context, site: Site | None, vault: Vault) -> Reply:
    """The outcomes of a site's tasks."""
    experiment, task = unflatten(context.run_config), batch.tasks[0]
    if task.phase == "facts":
        return Reply([_facts(task.partition, experiment, site)])
    own = _own(task.partition, experiment, site)
    return joined(answers(batch, own.workspace(context, batch.agreement), vault))


def _own(partition: int, experiment: Experiment, site: Site | None) -> Site:
    """The site, if the partition is its own. Raises `RunError`."""
    if site is None:
        raise RunError("it has no site; start it with --site NAME --data PATH")
    own, why = site.partition(experiment)
    if own != partition:
        raise RunError(why or f"its site is client {own}, not {partition}")
    return site


def _facts(partition: int, experiment: Experiment, site: Site | None) -> Outcome:
    """The facts of the site's data, or the sentence that says why it cannot be used."""
    try:
        facts = _own(partition, experiment, site).facts(experiment)
    except FLSimulationError as error:
        return Outcome(partition, "facts", {}, ClientError("error", str(error)))
    metrics: dict[str, float] = {"num-examples": facts.examples}
    return Outcome(partition, "facts", metrics, text=facts.model_dump_json())


def _partition(message: Message, context: Context) -> int | None:
    """The configured partition of this node, which a plain message needs."""
    partition = _configured_partition(context)
    if partition is None and is_plain(message):
        raise RunError("it has no partition; set partition-id in its node config")
    return partition


def _configured_partition(context: Context) -> int | None:
    configured = context.node_config.get("partition-id")
    return None if configured is None else int(configured)


app = make_client_app()
"""The ClientApp that Flower's runtimes load."""
