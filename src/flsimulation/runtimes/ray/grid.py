"""A federation on Ray: a Grid whose messages go to Flower's simulation actors.

Every actor holds the data and the model, and gets its share of a cohort in one message.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from flwr.app import ArrayRecord, Context, Message, RecordDict

from flsimulation.client.workspace import Workspace
from flsimulation.clock import SYSTEM, Clock
from flsimulation.errors import ClientError, InputError
from flsimulation.events import Event, Sink
from flsimulation.experiment import Experiment, flatten
from flsimulation.experiment.strategy import quiet_flower
from flsimulation.internals.flower_messages import requested, set_message_id
from flsimulation.messages.batch import Batch
from flsimulation.messages.codec import failed_reply
from flsimulation.runtimes import Federate
from flsimulation.runtimes.ray import client
from flsimulation.runtimes.simulated import (
    RUN_ID,
    SERVER_NODE_ID,
    SimulatedGrid,
    expires,
    flower_identity,
)
from flsimulation.server.app import Start, make_server_app

if TYPE_CHECKING:
    from flsimulation.runtimes.ray.actors import Actors

_LOOK_SECONDS = 1.0  # longest wait for a reply in one call of `pull_messages`
_SHARES = 4  # per actor, if clients train one by one: no actor then waits long for another
_LARGEST = 10  # most clients of such a share: their outcomes arrive together
_MARGIN_SECONDS = 1.0  # before a deadline, for sending a share's reply; at most a tenth of it


class _Share(NamedTuple):
    """A message that is sent to the next idle actor."""

    message: Message
    """Without the models."""
    models: Mapping[str, Any]
    """References to the models in Ray, by the name of the record."""
    expires: float
    """Unix time in seconds after which its reply is too late."""


class RayGrid(SimulatedGrid):
    """Sends shares of a cohort to Ray actors.

    Parameters
    ----------
    actors : Actors
        The actors.
    clients : int
        Number of nodes, one per partition.
    run_config : mapping
        Passed to every actor in its context.
    together : bool
        Whether an actor trains its share stacked; then each actor gets one share of a cohort.
    clock : Clock
        The clock to use.
    """

    def __init__(
        self,
        actors: Actors,
        clients: int,
        run_config: Mapping[str, bool | float | int | str],
        *,
        together: bool,
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(clients, averages=together)
        self._actors, self._clock = actors, clock
        self._run_config = dict(run_config)
        self._shares = deque[_Share]()
        self._until = float("inf")  # Unix time of the first deadline

    def divided(self, batch: Batch) -> Iterator[tuple[int | None, Batch]]:
        """A message for each share, to the node of its first client."""
        tasks, actors = batch.tasks, max(1, self._actors.count)
        if self.averages and tasks[0].phase == "train":
            # partition sizes may increase with the number
            shares = [tasks[first::actors] for first in range(min(actors, len(tasks)))]
        else:
            size = min(_LARGEST, max(1, len(tasks) // (_SHARES * actors)))
            shares = [tasks[first : first + size] for first in range(0, len(tasks), size)]
        for share in shares:
            yield self.node_of(share[0].partition), replace(batch, tasks=share)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send the messages to the actors; those whose time to live is over are dropped."""
        self._shares = deque(share for share in self._shares if share.expires > self._clock.time())
        held: dict[int, Any] = {}  # models of several messages, stored in Ray once
        identifiers = []
        for message in messages:
            identifiers.append(self._named(message))
            self._shares.append(self._share(message, held))
        self._until = min((share.expires for share in self._shares), default=float("inf"))
        self._begin()
        return identifiers

    def pull_messages(
        self,
        message_ids: Iterable[str] | None = None,
        *,
        reply_to_message_ids: Iterable[str] | None = None,
    ) -> Iterable[Message]:
        """Replies to whole shares; waits a short time if there are none."""
        self._begin()
        patience = max(0.0, min(_LOOK_SECONDS, self._until - self._clock.time()))
        found: list[tuple[_Share, Message | ClientError]] = self._actors.finished(patience)
        if self._actors.are_gone:
            lost = ClientError("lost", "no Ray actor is left")
            found += [(share, lost) for share in self._shares]
            self._shares.clear()
        self._begin()
        arrived = {share.message.metadata.message_id: (share, reply) for share, reply in found}
        wanted = requested(message_ids, reply_to_message_ids, list(arrived))
        return [_reply(*arrived[identifier]) for identifier in arrived if identifier in wanted]

    def _share(self, message: Message, held: dict[int, Any]) -> _Share:
        rest, models = RecordDict(), {}
        for name, record in message.content.items():
            if not isinstance(record, ArrayRecord):
                rest[name] = record
                continue
            if id(record) not in held:
                held[id(record)] = self._actors.put(record)
            models[name] = held[id(record)]
        return _Share(_in_time(message, rest), models, expires(message))

    def _begin(self) -> None:
        """Send waiting shares to idle actors."""
        while self._shares:
            share = self._shares[0]
            context = Context(
                RUN_ID, share.message.metadata.dst_node_id, {}, RecordDict(), self._run_config
            )
            if not self._actors.begin(client.load, share.models, share.message, context, share):
                return
            self._shares.popleft()


def _in_time(message: Message, content: RecordDict) -> Message:
    """The message with a time to live that is shorter by the time for sending the reply."""
    sent = message.metadata
    ttl = sent.ttl - min(_MARGIN_SECONDS, sent.ttl / 10)
    shorter = Message(content, sent.dst_node_id, sent.message_type, ttl=ttl)
    set_message_id(shorter, sent.message_id)
    return shorter


def _reply(share: _Share, found: Message | ClientError) -> Message:
    return failed_reply(share.message, found) if isinstance(found, ClientError) else found


@contextlib.contextmanager
def ray_federation(experiment: Experiment, sinks: Iterable[Sink] = ()) -> Iterator[Federate]:
    """A function that runs the experiment on Ray, whose actors have started inside the block.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    sinks : iterable of callables
        Notified if the actors take long to start.

    Raises
    ------
    InputError
        If Ray is not installed, does not answer at its address, or has no room.
    RunError
        If an actor does not start.
    """

    def emit(event: Event) -> None:
        for sink in sinks:
            sink(event)

    run_config = flatten(
        experiment
    )  # the same for all runs in the block: the actors keep their data
    prepare = functools.partial(client.prepare, run_config)
    with _ray().actors(experiment.runtime, experiment.data.clients, prepare, emit) as ready:
        yield functools.partial(run_on_actors, ready, run_config)


def _ray() -> ModuleType:
    """The module that imports Ray, which need not be installed for other runtimes."""
    try:
        from flsimulation.runtimes.ray import actors as ray_actors
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError(
            "runtime.kind 'ray' needs Ray, which is not installed; "
            "pip install 'flsimulation[ray]', or choose 'inprocess'"
        ) from None
    return ray_actors


def run_on_actors(
    actors: Actors,
    run_config: Mapping[str, bool | float | int | str],
    experiment: Experiment,
    sinks: Iterable[Sink],
    workspace: Workspace | None,
    start: Start | None,
) -> None:
    """Run the experiment's ServerApp in this process and its clients on the actors."""
    space = workspace or Workspace.load(experiment)
    together = space.engine.averages
    grid = RayGrid(
        actors, experiment.data.clients, run_config, together=together, clock=space.clock
    )
    context = Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(run_config))
    with flower_identity(), quiet_flower():
        make_server_app(sinks, space, start)(grid, context)
