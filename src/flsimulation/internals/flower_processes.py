"""Changes to the modules of Flower's SuperNode, SuperExec and SuperLink.

The new values and the reasons are in `flsimulation.node.waits` and `flsimulation.node.flower_patches`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias

from flwr.supercore import heartbeat
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.run import RunNotRunningException

from flsimulation.internals.flower_words import SERVER_APP

__all__ = [
    "Clock",
    "RunNotRunningException",
    "fail_task",
    "follow_heartbeats",
    "give_again",
    "has_answers",
    "has_work",
    "let_nodes_return",
    "list_nodes_heard",
    "run_app",
    "set_heartbeat_interval",
    "set_pull_waits",
    "set_superexec_clock",
    "set_supernode_clock",
    "wrap_pull_and_store",
    "wrap_push",
    "wrap_uploads",
]

Wrapped: TypeAlias = Callable[..., Any]
"""A step of a SuperNode's loop, called with all arguments by name."""


class Clock(Protocol):
    """The part of the module ``time`` that the loops of Flower's programs use."""

    def sleep(self, seconds: float) -> None:
        """Sleep."""


def set_supernode_clock(clock: Clock) -> None:
    """Replace ``time`` in a SuperNode's loop: 3 s between two requests, 0.5 s for a reply."""
    from flwr.supernode import start_client_internal

    vars(start_client_internal)["time"] = clock


def set_superexec_clock(clock: Clock) -> None:
    """Replace ``time`` in a SuperExec's loop, which sleeps between two requests for work."""
    from flwr.supercore.superexec import run_superexec

    vars(run_superexec)["time"] = clock


def set_pull_waits(seconds: Mapping[str, float]) -> None:
    """Replace the waits before the missing parts of a message are requested again.

    Parameters
    ----------
    seconds : mapping
        ``initial_backoff`` and ``backoff_cap``.
    """
    for function in (
        inflatable_utils.pull_objects,
        inflatable_utils.pull_and_inflate_object_from_tree,
    ):
        function.__kwdefaults__ = {**(function.__kwdefaults__ or {}), **seconds}


def set_heartbeat_interval(seconds: float) -> None:
    """Replace the interval from which this process's heartbeats calculate their wait."""
    vars(heartbeat)["HEARTBEAT_DEFAULT_INTERVAL"] = seconds


def follow_heartbeats() -> Callable[[], bool]:
    """Returns whether the SuperNode that is forked from this process sends heartbeats, since it began to."""
    from flwr.supernode import fleet_http_connection

    senders: list[heartbeat.HeartbeatSender] = []

    def make(beat: Callable[[], bool]) -> heartbeat.HeartbeatSender:
        senders.append(heartbeat.HeartbeatSender(beat))
        return senders[-1]

    vars(fleet_http_connection)["HeartbeatSender"] = make
    return lambda: all(sender.is_running for sender in senders)


def wrap_pull_and_store(wrap: Callable[[Wrapped], Wrapped]) -> None:
    """Wrap the function by which a SuperNode takes its next message.

    Its arguments, by name: ``state``; ``receive``, which returns a message with the tree of its
    parts, or None; ``pull_object``, which requests a part; and others. Returns the run's id, or None.
    """
    from flwr.supernode import start_client_internal

    name = "_pull_and_store_message"
    vars(start_client_internal)[name] = wrap(vars(start_client_internal)[name])


def wrap_push(wrap: Callable[[Wrapped], Wrapped]) -> None:
    """Wrap the function by which a SuperNode awaits and sends a reply.

    Its arguments, by name: ``send``, which sends the message and returns which parts are missing;
    ``push_object``, which sends a part; and others.
    """
    from flwr.supernode import start_client_internal

    vars(start_client_internal)["_push_messages"] = wrap(
        vars(start_client_internal)["_push_messages"]
    )


def wrap_uploads(wrap: Callable[[Any, Wrapped], Wrapped]) -> None:
    """Wrap the call by which a run's process sends lines of its log.

    Parameters
    ----------
    wrap : callable
        Of the queue of lines that are to be sent and of ``PushLogs``; returns what takes its place.
    """
    module = vars(import_module("flwr.superlink.runtime.run_serverapp"))
    start = module["start_log_uploader"]

    def start_wrapped(log_queue: Any, node_id: int, run_id: int, client: Any) -> Any:
        push = SimpleNamespace(PushLogs=wrap(log_queue, client.PushLogs))
        return start(log_queue=log_queue, node_id=node_id, run_id=run_id, client=push)

    module["start_log_uploader"] = start_wrapped


def run_app(app: Any) -> None:
    """Make the processes of messages run this ClientApp, whatever app the run has; none is unpacked."""
    module = vars(import_module("flwr.supernode.runtime.run_clientapp"))
    module["install_from_fab"] = lambda *_, **__: None
    module["get_load_client_app_fn"] = lambda **_: lambda *__: app


def has_answers(state: Any) -> bool:
    """Whether a SuperNode's state holds replies that were not sent.

    Flower 1.42 keeps a SuperNode's messages in a separate store, 1.43 in the common store of all its
    programs. Both versions have the methods of both stores; the unused store is empty.
    """
    from flwr.common.constant import SUPERLINK_NODE_ID

    legacy = getattr(state, "get_messages_legacy", None)  # 1.43 does not use it any more
    if legacy is not None and legacy(is_reply=True):
        return True
    return bool(state.get_messages(dst_node_id=SUPERLINK_NODE_ID, limit=1))


def has_work(state: Any) -> bool:
    """Whether a SuperNode's state holds a task that has not ended."""
    from flwr.common.constant import Status

    return bool(state.get_tasks(statuses=[Status.PENDING, Status.STARTING, Status.RUNNING]))


def list_nodes_heard(seconds: float) -> None:
    """Make the SuperLink in this process list only nodes with a heartbeat in the last seconds.

    Replaces ``InMemoryLinkState.get_nodes``, from which a run's server gets the connected nodes.
    """
    from flwr.server.superlink.linkstate import InMemoryLinkState

    get_nodes = InMemoryLinkState.get_nodes

    def heard(state: InMemoryLinkState, run_id: int) -> set[int]:
        with state.lock:
            numbers = get_nodes(state, run_id)
            return {n for n in numbers if _was_heard(state.nodes[n], seconds)}

    setattr(InMemoryLinkState, "get_nodes", heard)  # noqa: B010 - a type checker rejects the other form


def let_nodes_return(seconds: float) -> None:
    """Make the SuperLink in this process accept a node again that sent no heartbeat in the last seconds.

    The messages that it had taken are deleted: the process that took them has ended. Replaces
    ``InMemoryLinkState.activate_node``, which a SuperNode's first request calls.
    """
    from flwr.server.superlink.linkstate import InMemoryLinkState

    activate_node = InMemoryLinkState.activate_node

    def activate(state: InMemoryLinkState, node_id: int, heartbeat_interval: float) -> bool:
        with state.lock:
            node = state.nodes.get(node_id)
            if node is not None and not _was_heard(node, seconds):
                state.deactivate_node(node_id)
            if not activate_node(state, node_id, heartbeat_interval):
                return False
            state.delete_messages(_taken(state, node_id))
            return True

    setattr(InMemoryLinkState, "activate_node", activate)  # noqa: B010 - as above


def give_again() -> None:
    """Make the SuperLink in this process give a node what it took, while there is no reply to it.

    Replaces ``InMemoryLinkState.get_message_ins``, from which a SuperNode gets its next message.
    """
    from flwr.server.superlink.linkstate import InMemoryLinkState

    get_message_ins = InMemoryLinkState.get_message_ins

    def get(state: InMemoryLinkState, node_id: int, *args: Any, **kwargs: Any) -> list[Any]:
        with state.lock:
            for identifier in _taken(state, node_id):
                state.message_ins_store[identifier].metadata.delivered_at = ""
            return get_message_ins(state, node_id, *args, **kwargs)

    setattr(InMemoryLinkState, "get_message_ins", get)  # noqa: B010 - as above


def _was_heard(node: Any, seconds: float) -> bool:
    """Whether a node of a SuperLink's state sent a heartbeat in the last seconds."""
    from flwr.common.constant import HEARTBEAT_PATIENCE
    from flwr.supercore.date import now

    last = node.online_until - HEARTBEAT_PATIENCE * node.heartbeat_interval
    return bool(last >= now().timestamp() - seconds)


def _taken(state: Any, node: int) -> set[str]:
    """Ids of the messages that a node took and has not replied to."""
    return {
        identifier
        for identifier, message in state.message_ins_store.items()
        if message.metadata.dst_node_id == node
        and message.metadata.delivered_at
        and identifier not in state.message_ins_id_to_message_res_id
    }


def fail_task(
    address: str, token: str, log: Sequence[str], details: str, *, roots: bytes | None
) -> None:
    """End a ServerApp's task as failed, in place of its process; tries once.

    Parameters
    ----------
    address, token : str
        Where the process would have reported, and its token.
    log : sequence of str
        Last lines of the run's log.
    details : str
        Why it failed, in one line.
    roots : bytes, optional
        The CA's certificate by which the SuperLink is recognized; without it, there is no TLS.
    """
    from flwr.common.constant import SubStatus
    from flwr.proto.log_pb2 import PushLogsRequest
    from flwr.proto.runtime_pb2 import PushTaskOutputRequest
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
    )
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient

    retry = make_simple_http_retry_invoker()
    retry.max_tries = 1
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=roots is None,
        root_certificates=roots,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name=SERVER_APP),
            RuntimeTokenHttpInterceptor(token=token),
        ],
        retry_invoker=retry,
    )
    output = PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=details)
    with contextlib.suppress(Exception, RunNotRunningException), contextlib.closing(client):
        client.PushLogs(PushLogsRequest(logs=log))
        client.PushTaskOutput(output)
