"""Names of the records in messages, and replies that identify a node."""

from __future__ import annotations

from typing import TypeAlias, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

Record: TypeAlias = ArrayRecord | MetricRecord | ConfigRecord

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # Flower's own names of the records
_IDENTITY = "identity"  # a record of this package
_PARTITION_ID, _NAME, _TROUBLE = "partition-id", "name", "trouble"


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
    """Name, configured partition and trouble in a node's reply."""
    record = cast(ConfigRecord, message.content[_IDENTITY])
    partition = record.get(_PARTITION_ID)
    configured = None if partition is None else int(cast(int, partition))
    return str(record[_NAME]), configured, str(record.get(_TROUBLE, ""))
