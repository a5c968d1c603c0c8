"""The content of messages: what the server sends, what a client answers, and failures as errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, cast

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from flsimulation.errors import FAILURE_REASONS, ClientError
from flsimulation.internals.flower_messages import OF_CLIENT_APP
from flsimulation.messages.arrays import held_state, record_of, size_of

Record: TypeAlias = ArrayRecord | MetricRecord | ConfigRecord

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # Flower's own names of the records
_PARTITION, _IDENTITY = "partition", "identity"  # records of our own
_EVALUATE = "evaluate-"  # prefix of the evaluation's records in a message of both phases
_FAILURE = "failure"
_PARTITION_ID, _NAME, _TROUBLE = "partition-id", "name", "trouble"

_FIRST_CODE = 1000  # well above the codes Flower gives to its own errors
_CODES = {reason: _FIRST_CODE + i for i, reason in enumerate(FAILURE_REASONS)}
_REASONS = {code: reason for reason, code in _CODES.items()}


def state_of_record(arrays: ArrayRecord) -> dict[str, Tensor]:
    """A model as a state_dict; a copy, so that nothing done to it reaches the record."""
    return held_state(arrays)


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
        content[ARRAYS] = record_of(state)
    return Message(content, reply_to=message)


def failure(message: Message, error: ClientError) -> Message:
    """A client's answer that it failed, with the reason as the error's code."""
    return Message(Error(_CODES[error.reason], str(error)), reply_to=message)


def failure_of(message: Message) -> ClientError | None:
    """The failure that an answer reports, whoever reports it, or None."""
    if not message.has_error():
        return None
    error = message.error
    fallback = "error" if error.code in OF_CLIENT_APP else "lost"
    return ClientError(_REASONS.get(error.code, fallback), error.reason or f"code {error.code}")


def merge(train: Message, evaluate: Message) -> Message | None:
    """One message that asks a node to evaluate the model it carries and then to train it.

    None if the two do not carry the same model.
    """
    if model_of(train) is not model_of(evaluate):
        return None
    content = RecordDict({**train.content, _EVALUATE + CONFIG: config_of(evaluate)})
    told = train.metadata
    return Message(content, told.dst_node_id, told.message_type, group_id=told.group_id)


def evaluation_asked(message: Message) -> ConfigRecord | None:
    """The strategy's settings of the evaluation, if a training message asks for one too."""
    return cast(ConfigRecord | None, message.content.get(_EVALUATE + CONFIG))


def reply_both(message: Message, trained: Message, evaluated: Message) -> Message:
    """The answer to a message of both phases: each phase's result or its failure."""
    records = records_of(trained, "") | records_of(evaluated, _EVALUATE)
    return Message(RecordDict(records), reply_to=message)


def split(answer: Message, evaluate: Message) -> tuple[Message, Message]:
    """The answers to the training and to the evaluation that one answer holds.

    Parameters
    ----------
    answer : Message
        Made by `reply_both`, or an error, which then is both phases'.
    evaluate : Message
        The evaluation's own message, before it was merged.
    """
    if answer.has_error():
        return answer, Message(answer.error, reply_to=evaluate)
    records = {n: r for n, r in answer.content.items() if n.startswith(_EVALUATE)}
    evaluated = message_of({n.removeprefix(_EVALUATE): r for n, r in records.items()}, evaluate)
    rest = {n: r for n, r in answer.content.items() if n not in records}
    return message_of(rest, evaluate), evaluated


def records_of(answer: Message, prefix: str) -> dict[str, Record]:
    """An answer's records, or its failure as one, under names that begin with ``prefix``."""
    if answer.has_error():
        error = answer.error
        record = ConfigRecord({"code": error.code, "reason": error.reason or ""})
        return {prefix + _FAILURE: record}
    return {prefix + name: record for name, record in answer.content.items()}


def message_of(records: Mapping[str, Record], reply_to: Message) -> Message:
    """The answer, or the failure, that `records_of` took apart."""
    if (failed := cast(ConfigRecord | None, records.get(_FAILURE))) is not None:
        code, reason = cast(int, failed["code"]), str(failed["reason"])
        return Message(Error(code, reason), reply_to=reply_to)
    return Message(RecordDict(dict(records)), reply_to=reply_to)


def assign(message: Message, partition: int) -> None:
    """Tell the node in the message which partition it holds."""
    record = ConfigRecord({_PARTITION_ID: partition})
    message.content = RecordDict({**message.content, _PARTITION: record})


def assigned_partition(message: Message) -> int | None:
    """The partition that a message assigns to its node, or None."""
    record = message.content.get(_PARTITION)
    return None if record is None else int(cast(ConfigRecord, record)[_PARTITION_ID])  # type: ignore[arg-type]


def identity_reply(
    message: Message, name: str, partition: int | None, trouble: str = ""
) -> Message:
    """A node's answer to the question who it is, which partition it has, and what went wrong."""
    record = ConfigRecord({_NAME: name, _TROUBLE: trouble})
    if partition is not None:
        record[_PARTITION_ID] = partition
    return Message(RecordDict({_IDENTITY: record}), reply_to=message)


def identity_of(message: Message) -> tuple[str, int | None, str]:
    """Name, configured partition and trouble in a node's answer."""
    record = cast(ConfigRecord, message.content[_IDENTITY])
    partition = record.get(_PARTITION_ID)
    configured = None if partition is None else int(cast(int, partition))
    return str(record[_NAME]), configured, str(record.get(_TROUBLE, ""))


def payload_bytes(message: Message) -> int:
    """Bytes of a message's records, as Flower counts them; 0 for an error."""
    if not message.has_content():
        return 0
    return sum(size_of(record) for record in message.content.values())
