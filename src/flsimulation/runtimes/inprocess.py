"""A federation in this process: a Grid without Ray, SuperLink, or copies of messages."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeAlias

from flwr.app import Context, Message, RecordDict

from flsimulation.client.answers import answers
from flsimulation.client.workspace import Workspace
from flsimulation.clock import SYSTEM, Clock
from flsimulation.events import Sink
from flsimulation.experiment import Experiment, flatten
from flsimulation.experiment.strategy import quiet_flower
from flsimulation.host.processes import imports_kept
from flsimulation.internals.flower_messages import requested
from flsimulation.messages.batch import Batch, Reply
from flsimulation.messages.codec import batch_of, reply_to
from flsimulation.runtimes.simulated import (
    RUN_ID,
    SERVER_NODE_ID,
    SimulatedGrid,
    expires,
    flower_identity,
)
from flsimulation.server.app import Start, make_server_app

Answer: TypeAlias = Callable[[Batch], Iterator[Reply]]
"""Executes a batch's tasks and yields replies, as `flsimulation.client.answers.answers`."""


class InProcessGrid(SimulatedGrid):
    """Executes the clients' tasks while replies are pulled; a cohort is one message.

    Parameters
    ----------
    answer : callable
        Executes the clients' tasks.
    clients : int
        Number of nodes, one per partition.
    averages : bool
        Whether clients that train together can return their mean model.
    clock : Clock
        The clock to use.
    """

    def __init__(
        self, answer: Answer, clients: int, *, averages: bool = False, clock: Clock = SYSTEM
    ) -> None:
        super().__init__(clients, averages=averages)
        self._answer, self._clock = answer, clock
        self._waiting: dict[str, Message] = {}
        self._working: Message | None = None
        self._replies: Iterator[Reply] = iter(())

    @property
    def replies_in_parts(self) -> bool:
        """Yes: every outcome is visible as soon as it exists."""
        return True

    def divided(self, batch: Batch) -> Iterator[tuple[int | None, Batch]]:
        """All tasks in one message."""
        yield self.node_of(batch.tasks[0].partition), batch

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept the messages; their tasks run when replies are pulled.

        Messages whose time to live is over are dropped, as by a SuperLink.
        """
        now = self._clock.time()
        self._waiting = {i: m for i, m in self._waiting.items() if expires(m) > now}
        pushed = {self._named(message): message for message in messages}
        self._waiting |= pushed
        return list(pushed)

    def pull_messages(
        self,
        message_ids: Iterable[str] | None = None,
        *,
        reply_to_message_ids: Iterable[str] | None = None,
    ) -> Iterable[Message]:
        """Execute tasks until there is a reply; returns none if no task is left.

        So every outcome is visible as soon as it exists. A message that is not pulled any more is
        abandoned.
        """
        wanted = requested(message_ids, reply_to_message_ids, self._identifiers())
        while (message := self._at_work(wanted)) is not None:
            if (reply := next(self._replies, None)) is not None:
                return [reply_to(message, reply)]
            self._working = None
        return []

    def _identifiers(self) -> list[str]:
        """Ids of all messages without a complete reply."""
        begun = [self._working.metadata.message_id] if self._working is not None else []
        return [*begun, *self._waiting]

    def _at_work(self, wanted: Collection[str]) -> Message | None:
        """The message in progress; if there is none, the next one."""
        if self._working is not None and self._working.metadata.message_id not in wanted:
            self._working, self._replies = None, iter(())  # its reply is not needed any more
        if self._working is None:
            waiting = (self._waiting.pop(i) for i in wanted if i in self._waiting)
            if (message := next(waiting, None)) is not None:
                self._working, self._replies = message, self._answer(batch_of(message))
        return self._working


def run_in_process(
    experiment: Experiment,
    sinks: Iterable[Sink] = (),
    workspace: Workspace | None = None,
    start: Start | None = None,
) -> None:
    """Run the experiment's server and clients in this process; sinks receive the events.

    Raises
    ------
    InputError
        If the experiment's data or model is not available.
    RunError
        If the federation could not continue.
    """
    space = workspace or Workspace.load(experiment)
    context = Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(flatten(experiment)))
    with imports_kept(), flower_identity(), quiet_flower(), contextlib.closing(space.engine):
        answer = functools.partial(answers, space=space)
        clients, averages = experiment.data.clients, space.engine.averages
        grid = InProcessGrid(answer, clients, averages=averages, clock=space.clock)
        make_server_app(sinks, space, start, trains=True)(grid, context)
