"""Parts of Flower's messages and grids that are not public."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator

from flwr.app import Message
from flwr.common.constant import ErrorCode, SType
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "DELETED",
    "NUMPY",
    "OF_CLIENT_APP",
    "OF_SUPERLINK",
    "Run",
    "aggregate_metricrecords",
    "empty_run",
    "identifiers_of",
    "identity",
    "requested",
    "set_message_id",
]

NUMPY: str = SType.NUMPY
"""Name of the bytes of ``numpy.save`` in an ``Array``."""

OF_CLIENT_APP = frozenset(
    (
        ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
        ErrorCode.INVALID_FAB,
        ErrorCode.CLIENT_APP_CRASHED,
    )
)
"""Codes of Flower's errors that the client's own code caused."""
OF_SUPERLINK = frozenset(
    (
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
    )
)
"""Codes of errors that a SuperLink of 1.42 replies in place of a node; that of 1.43 does not."""
DELETED = ErrorCode.MESSAGE_UNAVAILABLE
"""The one of them for a message that the SuperLink has deleted, or whose time to live is over."""


@contextlib.contextmanager
def identity(task: int, run: int, node: int) -> Iterator[None]:
    """Set the identity of this process's messages inside the block, then restore the one before.

    Flower's own runtimes set it once per process; a message cannot be created without it.
    """
    names = ("task_id", "run_id", "node_id")
    before = {name: getattr(TaskIdentity, f"_{name}") for name in names}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task, run, node
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, f"_{name}", value)


def empty_run(run_id: int) -> Run:
    """Flower's description of a run, with only the id set."""
    return Run.create_empty(run_id)


def set_message_id(message: Message, identifier: str) -> None:
    """Set a message's id, to which its reply will refer, as Flower's own grids do."""
    vars(message.metadata)["_message_id"] = identifier


def identifiers_of(returned: Iterable[str | None], count: int) -> list[str | None]:
    """The id of each message that was pushed; None for one that was rejected.

    Parameters
    ----------
    returned : iterable
        By ``Grid.push_messages``. For a rejected message, Flower documents None in 1.42, and returns
        "" in 1.42 and 1.43; for messages that are too large together it returns nothing at all.
    count : int
        Number of messages that were pushed.
    """
    found = [identifier or None for identifier in returned]
    return found + [None] * (count - len(found))


def requested(
    message_ids: Iterable[str] | None,
    reply_to_message_ids: Iterable[str] | None,
    otherwise: Iterable[str],
) -> Collection[str]:
    """The ids that ``Grid.pull_messages`` was called with, as the argument of 1.42 or of 1.43.

    Parameters
    ----------
    message_ids, reply_to_message_ids : iterable of str, optional
        The argument of 1.42, and that of 1.43; both versions accept it as the first one.
    otherwise : iterable of str
        All ids: what 1.43 returns if no ids are passed.

    Raises
    ------
    TypeError
        If both are passed, as in Flower.
    """
    if message_ids is not None and reply_to_message_ids is not None:
        raise TypeError("pass either message_ids or reply_to_message_ids, not both")
    wanted = reply_to_message_ids if message_ids is None else message_ids
    if wanted is None:
        wanted = otherwise
    return wanted if isinstance(wanted, Collection) else list(wanted)
