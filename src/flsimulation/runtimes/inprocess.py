"""A federation in this process: a Grid that needs neither Ray nor a SuperLink nor a copy."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from flsimulation.client.app import make_client_app
from flsimulation.client.cohort import Asked, evaluate_together, train_together
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, describe_error
from flsimulation.events import Sink
from flsimulation.experiment import Experiment, flatten
from flsimulation.experiment.strategy import quiet_flower
from flsimulation.host.processes import imports_kept
from flsimulation.messages.content import config_of, failure, model_of
from flsimulation.server.app import Start, make_server_app
from flsimulation.server.exchange import PartitionedGrid

RUN_ID = 1
SERVER_NODE_ID = 1
_FIRST_NODE_ID = 2  # of partition 0

Together: TypeAlias = Callable[[Sequence[Asked]], Iterator[list[Message]]]


class _Nodes(Mapping[int, int]):
    """Partition by node of any number of clients, without a table."""

    def __init__(self, clients: int) -> None:
        self._ids = range(_FIRST_NODE_ID, _FIRST_NODE_ID + clients)

    def __getitem__(self, node: int) -> int:
        if node not in self._ids:
            raise KeyError(node)
        return node - _FIRST_NODE_ID

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def values(self) -> Any:
        """The partitions, ascending; not asked for one by one."""
        return range(len(self._ids))


class InProcessGrid(PartitionedGrid):
    """Answers each message by calling the ClientApp, one message a pull.

    Nodes are ordered by partition. A client's failure is an answer that carries an error, as in
    Flower's own runtimes.

    Parameters
    ----------
    client_app : ClientApp
        Called for every message.
    clients : int
        Number of nodes, one a partition.
    run_config : mapping
        Given to every client in its context.
    together : mapping, optional
        By type of message, what answers those that carry the same model, some at a time.
    averages : bool
        Whether it can give the clients' mean model.
    """

    def __init__(
        self,
        client_app: ClientApp,
        clients: int,
        run_config: Mapping[str, bool | float | int | str],
        together: Mapping[str, Together] | None = None,
        *,
        averages: bool = False,
    ) -> None:
        self._client_app = client_app
        self._together = together or {}
        self._averages = averages
        self._coming: Iterator[list[Message]] = iter(())
        self._run_config = dict(run_config)
        self._run = Run.create_empty(RUN_ID)
        self._waiting: dict[str, Message] = {}
        self._sent = 0
        self._states: dict[int, RecordDict] = {}
        self._partitions = _Nodes(clients)
        self._nodes = list(self._partitions)  # strategies list them twice a round

    @property
    def partitions(self) -> Mapping[int, int]:
        """Partition of every node id; all nodes are there."""
        return self._partitions

    def node_of(self, partition: int) -> int | None:
        """The node that holds a partition."""
        node = _FIRST_NODE_ID + partition
        return node if node in self._partitions else None

    def get_node_ids(self) -> Iterable[int]:
        """Nodes by partition."""
        return self._nodes

    @property
    def costs_time(self) -> bool:
        """A message in one process costs next to nothing."""
        return False

    def look(self) -> None:
        """Nobody comes or goes in one process."""

    @property
    def averages(self) -> bool:
        """Whether clients that train together can give their mean model."""
        return self._averages

    def gather(self, seconds: float) -> int:  # noqa: ARG002 - nobody is away
        """All clients are there."""
        return len(self.partitions)

    def wait(self, least: int, seconds: float) -> bool:  # noqa: ARG002
        """Whether there are so many clients; there will not be more."""
        return len(self.partitions) >= least

    def set_run(self, run: Run) -> None:
        """Take over the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept the messages; nothing runs before they are pulled.

        Messages whose time to live is over are dropped, as a SuperLink drops them.
        """
        now = time.time()
        self._coming = iter(())  # nobody waits any more for what was asked before
        self._waiting = {
            identifier: message
            for identifier, message in self._waiting.items()
            if message.metadata.created_at + message.metadata.ttl > now
        }
        identifiers = []
        for message in messages:
            self._sent += 1
            self._waiting[identifier := str(self._sent)] = message
            vars(message.metadata)["_message_id"] = identifier  # as Flower's own grids do
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the first waiting client answer, or those that answer together with it.

        So every answer can be seen as it comes.
        """
        if (answers := next(self._coming, None)) is not None:
            return answers
        for identifier in message_ids:
            if (message := self._waiting.pop(identifier, None)) is not None:
                together = self._together.get(message.metadata.message_type)
                if together is None:
                    return [self._answer(message)]
                return self._first_together(together, message, message_ids)
        return []

    def _first_together(
        self, together: Together, first: Message, message_ids: Iterable[str]
    ) -> list[Message]:
        """Let all clients that were asked for the same begin; gives the first answers."""
        content, kind = first.content, first.metadata.message_type
        asked = [Asked(first, self.partitions[first.metadata.dst_node_id])]
        model, config = model_of(first), config_of(first)
        for identifier in message_ids:
            message = self._waiting.get(identifier)
            if message is None or (told := message.metadata).message_type != kind:
                continue
            same = message.content is content  # as strategies build them
            if same or (model_of(message) is model and config_of(message) is config):
                asked.append(Asked(message, self.partitions[told.dst_node_id]))
                del self._waiting[identifier]
        self._coming = together(asked)
        return next(self._coming, [])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Let all clients answer; those whose turn does not come in time are left out."""
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        identifiers = list(self.push_messages(messages))
        answers: list[Message] = []
        while len(answers) < len(identifiers) and time.monotonic() < until:
            answers.extend(self.pull_messages(identifiers))
        for identifier in identifiers:
            self._waiting.pop(identifier, None)
        return answers

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        state = self._states.get(node, RecordDict())
        context = Context(RUN_ID, node, self._node_config(node), state, dict(self._run_config))
        try:
            answer = self._client_app(message, context)
        except Exception as error:
            return failure(message, ClientError("error", describe_error(error)))
        if context.state:
            self._states[node] = context.state
        return answer

    def _node_config(self, node: int) -> dict[str, bool | float | int | str]:
        return {"partition-id": self.partitions[node], "num-partitions": len(self.partitions)}


def run_in_process(
    experiment: Experiment,
    sinks: Iterable[Sink] = (),
    workspace: Workspace | None = None,
    start: Start | None = None,
) -> None:
    """Run the experiment's ServerApp and ClientApps in this process; events tell what happens.

    Raises
    ------
    InputError
        If the experiment's data or model cannot be had.
    RunError
        If the federation could not go on.
    """
    space = workspace or Workspace.load(experiment)
    run_config = flatten(experiment)
    context = Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(run_config))
    together: Mapping[str, Together] = {
        MessageType.TRAIN: functools.partial(train_together, space=space),
        MessageType.EVALUATE: functools.partial(evaluate_together, space=space),
    }
    with imports_kept(), flower_identity(), quiet_flower(), contextlib.closing(space.engine):
        clients, averages = experiment.data.clients, space.engine.averages
        client = make_client_app(space)
        grid = InProcessGrid(client, clients, run_config, together, averages=averages)
        make_server_app(sinks, space, start)(grid, context)


@contextlib.contextmanager
def flower_identity() -> Iterator[None]:
    """Give Flower's messages the identity of a run inside the block.

    Flower's own runtimes set it once for a process; a message cannot be made without it.

    ``TaskIdentity`` is not part of Flower's public API: docs/decisions/0002 says why it is used.
    """
    names = ("task_id", "run_id", "node_id")
    before = {name: getattr(TaskIdentity, f"_{name}") for name in names}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE_ID
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, f"_{name}", value)
