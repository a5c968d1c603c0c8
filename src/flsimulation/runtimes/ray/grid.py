"""A federation on Ray: a Grid whose messages are answered by Flower's simulation actors.

Every actor holds the data and the model, and answers for its share of a cohort in one message.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message, MessageType, RecordDict

from flsimulation.client import share as share_app
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, InputError
from flsimulation.events import Sink
from flsimulation.experiment import Experiment, flatten
from flsimulation.experiment.spec import Runtime
from flsimulation.experiment.strategy import quiet_flower
from flsimulation.messages.batch import unbundle
from flsimulation.messages.content import failure
from flsimulation.runtimes import Federate
from flsimulation.runtimes.inprocess import (
    RUN_ID,
    SERVER_NODE_ID,
    InProcessGrid,
    flower_identity,
)
from flsimulation.server.app import Start, make_server_app

if TYPE_CHECKING:
    from flsimulation.runtimes.ray.actors import Actors

_LOOK_SECONDS = 1.0  # the longest wait for an answer before others may look at what happens
_SHARES = 4  # for each actor, where clients go one by one: no actor then waits long for another
_LARGEST = 10  # clients of such a share: their answers come together
_MARGIN_SECONDS = 1.0  # before a deadline, for the way of a share's answer; at most a tenth of it


@dataclass(frozen=True)
class _Share:
    """Clients whose message goes to one actor."""

    messages: Mapping[int, Message]
    """By partition."""
    sent: Any
    """One message for all, as Ray holds it."""
    expires: float
    """Unix time in seconds."""


class RayGrid(InProcessGrid):
    """Lets Ray actors answer: nodes, partitions and messages are those of one process.

    Parameters
    ----------
    actors : Actors
        Who answers.
    clients : int
        Number of nodes, one a partition.
    run_config : mapping
        Given to every actor in its context.
    together : bool
        Whether an actor trains its share as one program: then each gets one share of a cohort.
    """

    def __init__(
        self,
        actors: Actors,
        clients: int,
        run_config: Mapping[str, bool | float | int | str],
        *,
        together: bool,
    ) -> None:
        super().__init__(share_app.app, clients, run_config)
        self._actors = actors
        self._trains_together = together
        self._shares = deque[_Share]()
        self._until = float("inf")  # Unix time: the end of the phase

    @property
    def averages(self) -> bool:
        """Whether clients that train together can give their mean model."""
        return self._trains_together

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Divide the messages among the actors; those whose time is over are dropped."""
        now = time.time()
        self._shares = deque(share for share in self._shares if share.expires > now)
        self._until = float("inf")
        identifiers: list[str] = []
        alike: dict[tuple[object, ...], list[Message]] = {}
        for message in messages:
            self._sent += 1
            identifiers.append(identifier := str(self._sent))
            vars(message.metadata)["_message_id"] = identifier  # as Flower's own grids do
            records = (
                part for name, record in message.content.items() for part in (name, id(record))
            )
            alike.setdefault((message.metadata.message_type, *records), []).append(message)
        for group in alike.values():
            sent, told = self._actors.put(_in_time(group[0])), group[0].metadata
            self._until = min(self._until, told.created_at + told.ttl)
            for share in self._divided(group):
                by_partition = {self.partitions[m.metadata.dst_node_id]: m for m in share}
                self._shares.append(_Share(by_partition, sent, told.created_at + told.ttl))
        self._begin()
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers that are there, of whole shares; waits a while if there are none."""
        self._begin()
        patience = max(0.0, min(_LOOK_SECONDS, self._until - time.time()))
        found: list[tuple[_Share, Message | ClientError]] = self._actors.finished(patience)
        if self._actors.are_gone:
            found += [
                (share, ClientError("lost", "no Ray actor is left")) for share in self._shares
            ]
            self._shares.clear()
        self._begin()
        wanted = set(message_ids)
        answers = [answer for share, came in found for answer in _answers(share, came)]
        return [answer for answer in answers if answer.metadata.reply_to_message_id in wanted]

    def _divided(self, asked: Sequence[Message]) -> Iterator[Sequence[Message]]:
        """Messages that carry the same, by share."""
        actors = max(1, self._actors.count)
        if self._trains_together and asked[0].metadata.message_type == MessageType.TRAIN:
            # sizes may grow with the client's number
            yield from (asked[first::actors] for first in range(min(actors, len(asked))))
            return
        size = min(_LARGEST, max(1, len(asked) // (_SHARES * actors)))
        yield from (asked[first : first + size] for first in range(0, len(asked), size))

    def _begin(self) -> None:
        """Give idle actors what waits."""
        while self._shares:
            share = self._shares[0]
            node: dict[str, bool | float | int | str] = {
                share_app.PARTITIONS: ",".join(map(str, share.messages)),
                "num-partitions": len(self.partitions),
            }
            context = Context(RUN_ID, 0, node, RecordDict(), self._run_config)
            if not self._actors.begin(share_app.load, share.sent, context, share):
                return
            self._shares.popleft()


def _in_time(message: Message) -> Message:
    """The message with a time to live that leaves the answer of many its way back."""
    told = message.metadata
    ttl = told.ttl - min(_MARGIN_SECONDS, told.ttl / 10)
    return Message(
        message.content, told.dst_node_id, told.message_type, ttl=ttl, group_id=told.group_id
    )


def _answers(share: _Share, came: Message | ClientError) -> list[Message]:
    if isinstance(came, ClientError):
        return [failure(message, came) for message in share.messages.values()]
    return unbundle(came, share.messages)


@contextlib.contextmanager
def ray_federation(experiment: Experiment) -> Iterator[Federate]:
    """What runs the experiment on Ray, inside the block; Ray and its actors are up by then.

    Raises
    ------
    InputError
        If Ray is not installed, not where the experiment says, or has no room.
    """
    run_config = flatten(experiment)  # the same for all runs in the block: actors keep their data
    prepare = functools.partial(share_app.prepare, run_config)
    with _ray().actors(experiment.runtime, experiment.data.clients, prepare) as ready:
        yield functools.partial(run_on_actors, ready, run_config)


def check_ray(spec: Runtime) -> None:
    """See that Ray is installed and is where the experiment says. Raises `InputError`."""
    ray = _ray()
    if spec.ray_address:
        with ray.connected(spec.ray_address):
            pass


def _ray() -> ModuleType:
    """What imports Ray; only whoever asks for Ray needs to have it."""
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
    grid = RayGrid(actors, experiment.data.clients, run_config, together=together)
    context = Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(run_config))
    with flower_identity(), quiet_flower():
        make_server_app(sinks, space, start)(grid, context)
