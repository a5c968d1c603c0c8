"""Batches and replies as Flower's messages, in the same form on every runtime.

A model's record is used unchanged, so that nothing is copied within one process. A message of
Flower's own round loop, with one model and one client's settings, is a batch of one task.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from flsimulation.clock import SYSTEM, Clock
from flsimulation.errors import FAILURE_REASONS, ClientError
from flsimulation.events import Phase
from flsimulation.host.warned import Warned
from flsimulation.internals.flower_messages import OF_CLIENT_APP
from flsimulation.messages.batch import Batch, Mean, Outcome, Reply, Task
from flsimulation.messages.content import ARRAYS, CONFIG, METRICS, Record, config_of, model_of

_TASKS, _OUTCOMES, _FAILURES, _ENGINE = "tasks", "outcomes", "failures", "engine"
_STATES, _LEFT_OUT, _WARNED, _TEXTS = "states", "left-out", "warned", "texts"

_FIRST_CODE = 1000  # well above the codes of Flower's own errors
_CODES = {reason: _FIRST_CODE + i for i, reason in enumerate(FAILURE_REASONS)}
_REASONS = {code: reason for reason, code in _CODES.items()}


def message_of(batch: Batch, node: int, seconds: float = 0.0, clock: Clock = SYSTEM) -> Message:
    """The message that sends a batch to a node.

    Parameters
    ----------
    batch : Batch
        With at least one task.
    node : int
        Flower's id of the node.
    seconds : float
        Limit for the outcomes; 0 for none. It is sent as the message's time to live.
    clock : Clock
        The clock to use.
    """
    trains = any(task.phase == "train" for task in batch.tasks)
    kind = MessageType.TRAIN if trains else MessageType.EVALUATE
    content = RecordDict(cast(dict[str, Any], _records(batch, limited=seconds > 0)))
    message = Message(content, node, kind, ttl=seconds or None)
    message.metadata.created_at = clock.time()
    return message


def _records(batch: Batch, *, limited: bool) -> dict[str, Record]:
    groups: dict[tuple[Phase, int, int], int] = {}  # tasks that differ only in their partition
    configs: list[ConfigRecord] = []
    places = []
    for _, phase, round, config in batch.tasks:
        key = (phase, round, id(config))
        if (place := groups.get(key)) is None:
            place = groups[key] = len(groups)
            configs.append(config)
        places.append(place)
    tasks = ConfigRecord(
        {
            "partitions": [task.partition for task in batch.tasks],
            "groups": places,
            "phases": [str(phase) for phase, _, _ in groups],
            "rounds": [round for _, round, _ in groups],
            "average": batch.average,
            "limited": limited,
            "agreement": batch.agreement,
        }
    )
    named = {f"{CONFIG}-{place}": config for place, config in enumerate(configs)}
    return {ARRAYS: batch.model, _TASKS: tasks, **named}


def batch_of(message: Message, partition: int | None = None) -> Batch:
    """The batch in a message.

    Parameters
    ----------
    message : Message
        Made by `message_of`, or by one of Flower's strategies.
    partition : int, optional
        Partition of the node, for messages without one: those of Flower's strategies.
    """
    content, metadata = message.content, message.metadata
    if (tasks := cast(ConfigRecord | None, content.get(_TASKS))) is None:
        return _batch_of_one(message, partition)
    expires = metadata.created_at + metadata.ttl if tasks["limited"] else None
    groups = [
        (phase, round, content[f"{CONFIG}-{place}"])
        for place, (phase, round) in enumerate(_rows(tasks, "phases", "rounds"))
    ]
    found = [Task(p, *groups[place]) for p, place in _rows(tasks, "partitions", "groups")]
    agreement = str(tasks.get("agreement", ""))
    return Batch(model_of(message), found, bool(tasks["average"]), expires, agreement)


def is_plain(message: Message) -> bool:
    """Whether a message is for one client, as Flower's strategies create them."""
    return _TASKS not in message.content


def _batch_of_one(message: Message, partition: int | None) -> Batch:
    if partition is None:
        raise ValueError("a message without tasks needs the partition of its node")
    config = config_of(message)
    round = config.get("server-round", 0)
    phase: Phase = "train" if message.metadata.message_type == MessageType.TRAIN else "evaluate"
    number = int(round) if isinstance(round, int | float) else 0
    return Batch(model_of(message), [Task(partition, phase, number, config)])


def reply_to(message: Message, reply: Reply) -> Message:
    """The message that sends a reply.

    Parameters
    ----------
    message : Message
        The message to reply to. If it `is_plain`, so is the reply: one client's metrics and model,
        or Flower's error.
    reply : Reply
        Some or all of the outcomes.
    """
    if is_plain(message):
        (outcome,) = reply.outcomes
        return plain_reply(message, outcome)
    good = [outcome for outcome in reply.outcomes if outcome.error is None]
    records = _columns(good)
    if len(good) < len(reply.outcomes):
        records[_FAILURES] = _failures([o for o in reply.outcomes if o.error is not None])
    for outcome in good:
        if outcome.model is not None:
            records[f"{ARRAYS}-{outcome.partition}"] = outcome.model
        if outcome.states is not None:
            records[f"{_STATES}-{outcome.partition}"] = outcome.states
    if any(outcome.left_out for outcome in good):
        records[_LEFT_OUT] = _left_out(good)
    if words := {str(outcome.partition): outcome.text for outcome in good if outcome.text}:
        records[_TEXTS] = ConfigRecord(cast(dict[str, Any], words))
    if reply.mean is not None:
        records[ARRAYS] = reply.mean.model
        cast(ConfigRecord, records[_OUTCOMES])["weight"] = reply.mean.weight
    if reply.engine is not None:
        records[_ENGINE] = ConfigRecord({"name": reply.engine, "why-not": reply.why_not or ""})
    if reply.warned:
        clients, texts = zip(*reply.warned, strict=True)
        records[_WARNED] = ConfigRecord({"clients": list(clients), "texts": list(texts)})
    return Message(RecordDict(cast(dict[str, Any], records)), reply_to=message)


def plain_reply(message: Message, outcome: Outcome) -> Message:
    """One client's reply as Flower's strategies expect it: metrics and model, or an error."""
    if outcome.error is not None:
        return failed_reply(message, outcome.error)
    content = RecordDict({METRICS: MetricRecord(dict(outcome.metrics))})
    if outcome.model is not None:
        content[ARRAYS] = outcome.model
    return Message(content, reply_to=message)


def failed_reply(message: Message, error: ClientError) -> Message:
    """A reply with one error for all tasks of a message, as Flower's own runtimes report it."""
    return Message(Error(_CODES[error.reason], str(error)), reply_to=message)


def _columns(outcomes: Sequence[Outcome]) -> dict[str, Record]:
    """The clients' metrics as lists, with one record for clients with the same names."""
    blocks: dict[tuple[object, ...], list[Outcome]] = {}
    for outcome in outcomes:
        numbers = outcome.metrics
        alike = (outcome.phase, *numbers, *map(type, numbers.values()))
        blocks.setdefault(alike, []).append(outcome)
    header = ConfigRecord(
        {
            "partitions": [o.partition for block in blocks.values() for o in block],
            "sizes": [len(block) for block in blocks.values()],
            "phases": [str(block[0].phase) for block in blocks.values()],
        }
    )
    records: dict[str, Record] = {_OUTCOMES: header}
    for place, block in enumerate(blocks.values()):
        columns = {name: [o.metrics[name] for o in block] for name in block[0].metrics}
        records[f"{METRICS}-{place}"] = MetricRecord(cast(dict[str, Any], columns))
    return records


def _failures(outcomes: Sequence[Outcome]) -> ConfigRecord:
    errors = [cast(ClientError, outcome.error) for outcome in outcomes]
    return ConfigRecord(
        {
            "partitions": [outcome.partition for outcome in outcomes],
            "phases": [str(outcome.phase) for outcome in outcomes],
            "reasons": [error.reason for error in errors],
            "errors": [str(error) for error in errors],
        }
    )


def _left_out(outcomes: Sequence[Outcome]) -> ConfigRecord:
    rows = [(o.partition, str(o.phase), *pair) for o in outcomes for pair in o.left_out.items()]
    columns = ("partitions", "phases", "names", "reasons")
    return ConfigRecord(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))


def reply_of(message: Message) -> Reply | ClientError:
    """The reply in a message of `reply_to`, or the error that Flower reports instead."""
    if (error := failure_of(message)) is not None:
        return error
    content = message.content
    outcomes = list(_succeeded(content))
    if (failed := cast(ConfigRecord | None, content.get(_FAILURES))) is not None:
        outcomes += [
            Outcome(partition, phase, {}, ClientError(reason, error))
            for partition, phase, reason, error in _rows(
                failed, "partitions", "phases", "reasons", "errors"
            )
        ]
    mean = cast(ArrayRecord | None, content.get(ARRAYS))
    header = cast(ConfigRecord, content[_OUTCOMES])
    engine = cast(ConfigRecord, content.get(_ENGINE, {}))
    warned = cast(ConfigRecord | None, content.get(_WARNED))
    return Reply(
        outcomes,
        Mean(mean, cast(int, header["weight"])) if mean is not None else None,
        cast(str | None, engine.get("name")),
        cast(str | None, engine.get("why-not")) or None,
        [Warned(*row) for row in _rows(warned, "clients", "texts")] if warned is not None else (),
    )


def failure_of(message: Message) -> ClientError | None:
    """The error that a message reports instead of outcomes; None if it has none."""
    if not message.has_error():
        return None
    error = message.error
    fallback = "error" if error.code in OF_CLIENT_APP else "lost"
    return ClientError(_REASONS.get(error.code, fallback), error.reason or f"code {error.code}")


def _succeeded(content: RecordDict) -> Iterator[Outcome]:
    header = cast(ConfigRecord, content[_OUTCOMES])
    partitions = iter(cast(list[int], header["partitions"]))
    models = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
    left_out: dict[tuple[int, Phase], dict[str, str]] = {}
    if (record := cast(ConfigRecord | None, content.get(_LEFT_OUT))) is not None:
        for partition, phase, name, why in _rows(
            record, "partitions", "phases", "names", "reasons"
        ):
            left_out.setdefault((partition, phase), {})[name] = why
    words = cast(Mapping[str, str], content.get(_TEXTS, {}))
    for place, (size, phase) in enumerate(_rows(header, "sizes", "phases")):
        columns = cast(Mapping[str, list[float]], content[f"{METRICS}-{place}"])
        names = list(columns)
        rows = zip(*columns.values(), strict=True) if names else itertools.repeat((), size)
        for row in rows:
            partition = next(partitions)
            kind = ARRAYS if phase == "train" else _STATES
            arrays = models.get(f"{kind}-{partition}") if models else None
            model, states = (arrays, None) if phase == "train" else (None, arrays)
            out = left_out.get((partition, phase), {}) if left_out else {}
            metrics = dict(zip(names, row, strict=True))
            text = str(words.get(str(partition), "")) if words else ""
            yield Outcome(partition, phase, metrics, None, model, states, out, text)


def _rows(record: ConfigRecord, *columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(cast(list[Any], record[column]) for column in columns), strict=True)
