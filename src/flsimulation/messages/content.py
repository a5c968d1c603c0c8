"""Names of the records in messages, and replies that identify a node."""

from __future__ import annotations

from typing import TypeAlias, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from flsimulation.errors import one_line

Record: TypeAlias = ArrayRecord | MetricRecord | ConfigRecord

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # Flower's own names of the records
_IDENTITY = "identity"  # a record of this package
_PARTITION_ID, _NAME, _TROUBLE = "partition-id", "name", "trouble"
_LONGEST_NAME = 100  # characters of a client's name


def config_of(message: Message) -> ConfigRecord:
    """The strategy's settings for this round."""
    return cast(ConfigRecord, message.content[CONFIG])


def model_of(message: Message) -> ArrayRecord:
    """The model in a message, as Flower's record."""
    return cast(ArrayRecord, message.content[ARRAYS])


def identity_reply(
    message: Message, name: str, partition: int | None, trouble: str = ""
) -> Message:
    """A node's reply to a query: its name, its configured partition, and what went wrong."""
    record = ConfigRecord({_NAME: name, _TROUBLE: trouble})
    if partition is not None:
        record[_PARTITION_ID] = partition
    return Message(RecordDict({_IDENTITY: record}), reply_to=message)


def identity_of(message: Message) -> tuple[str, int | None, str]:
    """Name, configured partition and trouble in a node's reply; the texts are safe to print.

    Raises
    ------
    ValueError
        If it is no such reply.
    """
    record = message.content.get(_IDENTITY)
    if not isinstance(record, ConfigRecord):
        raise ValueError("its reply to the query for its name cannot be read")
    name, partition = one_line(record.get(_NAME, ""), _LONGEST_NAME), record.get(_PARTITION_ID)
    if not name or not (partition is None or isinstance(partition, int)):
        raise ValueError("its reply to the query for its name has no name, or no valid partition")
    return name, partition, one_line(record.get(_TROUBLE, ""))
