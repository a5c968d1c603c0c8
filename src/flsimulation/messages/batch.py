"""Messages of a whole cohort: clients that train together may give their mean model in one answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from flsimulation.errors import ClientError
from flsimulation.messages.arrays import held_state, record_of
from flsimulation.messages.content import ARRAYS, METRICS, Record, message_of, records_of
from flsimulation.messages.weights import mean_of

_ASKS = "average"  # in a message: give the mean model of those that were asked together
_COHORT = "cohort"  # in an answer: whose it is, and the examples behind its model
_FAILURES = "failures"


@dataclass(frozen=True)
class CohortAnswer:
    """What clients that were trained together answer."""

    metrics: Mapping[int, dict[str, float]]
    """Numbers of those that succeeded, by partition; the same names for all."""
    failures: Mapping[int, ClientError]
    """Why the others did not, by partition."""
    mean: ArrayRecord | None
    """Mean model of those that succeeded, weighted by their examples; None if none did."""
    examples: int
    """Examples behind it."""


def ask_average(messages: Iterable[Message]) -> None:
    """Let messages ask for their clients' mean model in place of each client's own."""
    asking: dict[int, RecordDict] = {}  # messages that share their content still do
    for message in messages:
        content = message.content
        if id(content) not in asking:
            asking[id(content)] = RecordDict({**content, _ASKS: ConfigRecord()})
        message.content = asking[id(content)]


def asks_average(message: Message) -> bool:
    """Whether a message asks for its clients' mean model only."""
    return message.has_content() and _ASKS in message.content


def cohort_reply(
    message: Message,
    metrics: Mapping[int, Mapping[str, float]],
    failures: Mapping[int, ClientError],
    mean: Mapping[str, Tensor],
    examples: int,
) -> Message:
    """The answer of several clients to one of the messages that they got; see `CohortAnswer`."""
    names: Sequence[str] = list(next(iter(metrics.values()), ()))
    content = RecordDict(
        {
            METRICS: MetricRecord({n: [own[n] for own in metrics.values()] for n in names}),
            _COHORT: ConfigRecord({"partitions": list(metrics), "examples": examples}),
            _FAILURES: ConfigRecord(
                {
                    "partitions": list(failures),
                    "reasons": [error.reason for error in failures.values()],
                    "errors": [str(error) for error in failures.values()],
                }
            ),
        }
    )
    if metrics:
        content[ARRAYS] = record_of(mean)
    return Message(content, reply_to=message)


def cohort_answer(message: Message) -> CohortAnswer | None:
    """What several clients answer in one message, or None if it is one client's answer."""
    if not message.has_content() or _COHORT not in message.content:
        return None
    content = message.content
    told, failed = (cast(ConfigRecord, content[name]) for name in (_COHORT, _FAILURES))
    partitions = cast(list[int], told["partitions"])
    columns = cast(Mapping[str, list[float]], content[METRICS])
    rows = zip(*columns.values(), strict=True)
    metrics = {
        p: dict(zip(columns, row, strict=True)) for p, row in zip(partitions, rows, strict=True)
    }
    lists = (cast(list[str], failed[key]) for key in ("partitions", "reasons", "errors"))
    failures = {
        int(partition): ClientError(reason, error)
        for partition, reason, error in zip(*lists, strict=True)
    }
    mean = cast(ArrayRecord | None, content.get(ARRAYS))
    return CohortAnswer(metrics, failures, mean, cast(int, told["examples"]))


def merged(message: Message, answers: Sequence[Message]) -> list[Message]:
    """Answers with those of several clients made one, as far as their numbers have the same names.

    Parameters
    ----------
    message : Message
        What the merged answer answers.
    answers : sequence of Message
        Of one client each, which stay as they are, or of several.
    """
    found = [(answer, cohort_answer(answer)) for answer in answers]
    together = [part for _, part in found if part is not None]
    names = {frozenset(own) for part in together for own in part.metrics.values()}
    if not together or len(names) > 1:  # not the same names: the server says so, and needs to see
        return list(answers)
    return [answer for answer, part in found if part is None] + [_one_of(message, together)]


def _one_of(message: Message, parts: Sequence[CohortAnswer]) -> Message:
    metrics = {p: own for part in parts for p, own in part.metrics.items()}
    failures = {p: error for part in parts for p, error in part.failures.items()}
    models = [part.mean for part in parts if part.mean is not None]
    weights = [part.examples for part in parts if part.mean is not None]
    mean = mean_of(models, weights) if models else ArrayRecord()
    return cohort_reply(message, metrics, failures, held_state(mean), sum(weights))


def bundle(message: Message, answers: Mapping[int, Message]) -> Message:
    """One answer that holds those of several clients, by partition."""
    records: dict[str, Record] = {}
    for partition, answer in answers.items():
        records |= records_of(answer, f"{partition}:")
    return Message(RecordDict(records), reply_to=message)


def unbundle(answer: Message, messages: Mapping[int, Message]) -> list[Message]:
    """The answers that a bundle holds, each to the message of its partition."""
    parts: dict[int, dict[str, Record]] = {}
    for name, record in answer.content.items():
        partition, _, own = name.partition(":")
        parts.setdefault(int(partition), {})[own] = record
    return [message_of(records, messages[p]) for p, records in parts.items()]
