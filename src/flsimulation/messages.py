"""The content of messages: what the server sends, what a client answers, and failures as errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from flsimulation.errors import FAILURE_REASONS, ClientError

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # Flower's own names of the records
_PARTITION, _IDENTITY = "partition", "identity"  # records of our own
_PARTITION_ID, _NAME = "partition-id", "name"

RESERVED = frozenset(
    ("round", "phase", "partition", "num-examples", "epochs", "steps", "seconds", "reason", "error")
)
"""Names in an answer, or in its line of clients.jsonl, that a module must not log under."""

_FIRST_CODE = 1000  # well above the codes Flower gives to its own errors
_CODES = {reason: _FIRST_CODE + i for i, reason in enumerate(FAILURE_REASONS)}
_REASONS = {code: reason for reason, code in _CODES.items()}
_FLOWER_CODES = (1, 2, 7, 8)  # of the client's code: not loaded, raised, not valid, crashed


def state_of_record(arrays: ArrayRecord) -> dict[str, Tensor]:
    """A model as a state_dict; a copy, so that nothing done to it reaches the record."""
    return dict(arrays.to_torch_state_dict())


def state_of(message: Message) -> dict[str, Tensor]:
    """The model that a message carries, as a state_dict."""
    return state_of_record(model_of(message))


def config_of(message: Message) -> ConfigRecord:
    """The strategy's settings for this round."""
    return cast(ConfigRecord, message.content[CONFIG])


def metrics_of(message: Message) -> dict[str, float]:
    """The numbers of a client's answer."""
    record = cast(MetricRecord, message.content[METRICS])
    return {name: value for name, value in record.items() if not isinstance(value, list)}


def model_of(message: Message) -> ArrayRecord:
    """The model that a message carries, as Flower's record."""
    return cast(ArrayRecord, message.content[ARRAYS])


def set_model(message: Message, arrays: ArrayRecord) -> None:
    """Put another model into a message; other messages that share its content keep theirs."""
    message.content = RecordDict({**message.content, ARRAYS: arrays})


def reply(
    message: Message, metrics: Mapping[str, int | float], state: Mapping[str, Tensor] | None = None
) -> Message:
    """A client's answer with its metrics and, after training, its model."""
    content = RecordDict({METRICS: MetricRecord(dict(metrics))})
    if state is not None:
        content[ARRAYS] = ArrayRecord.from_torch_state_dict(dict(state))
    return Message(content, reply_to=message)


def failure(message: Message, error: ClientError) -> Message:
    """A client's answer that it failed, with the reason as the error's code."""
    return Message(Error(_CODES[error.reason], str(error)), reply_to=message)


def failure_of(message: Message) -> ClientError | None:
    """The failure that an answer reports, whoever reports it, or None."""
    if not message.has_error():
        return None
    error = message.error
    fallback = "error" if error.code in _FLOWER_CODES else "lost"
    return ClientError(_REASONS.get(error.code, fallback), error.reason or f"code {error.code}")


def assign(message: Message, partition: int) -> None:
    """Tell the node in the message which partition it holds."""
    record = ConfigRecord({_PARTITION_ID: partition})
    message.content = RecordDict({**message.content, _PARTITION: record})


def assigned_partition(message: Message) -> int | None:
    """The partition that a message assigns to its node, or None."""
    record = message.content.get(_PARTITION)
    return None if record is None else int(cast(ConfigRecord, record)[_PARTITION_ID])  # type: ignore[arg-type]


def identity_reply(message: Message, name: str, partition: int | None) -> Message:
    """A node's answer to the question who it is and which partition it is configured for."""
    record = ConfigRecord({_NAME: name})
    if partition is not None:
        record[_PARTITION_ID] = partition
    return Message(RecordDict({_IDENTITY: record}), reply_to=message)


def identity_of(message: Message) -> tuple[str, int | None]:
    """Name and configured partition in a node's answer."""
    record = cast(ConfigRecord, message.content[_IDENTITY])
    partition = record.get(_PARTITION_ID)
    return str(record[_NAME]), None if partition is None else int(cast(int, partition))


def payload_bytes(message: Message) -> int:
    """Bytes of a message's records, as Flower counts them; 0 for an error."""
    if not message.has_content():
        return 0
    return sum(record.count_bytes() for record in message.content.values())
