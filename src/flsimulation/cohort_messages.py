"""Messages of a whole cohort: clients that train together may give their mean model in one answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from flsimulation.arrays import record_of
from flsimulation.errors import ClientError
from flsimulation.messages import ARRAYS, METRICS

_ASKS = "average"  # in a message: give the mean model of those that were asked together
_COHORT = "cohort"  # in an answer: whose it is, and the examples behind its model
_FAILURES = "failures"


@dataclass(frozen=True)
class CohortAnswer:
    """What clients that were trained together answer."""

    metrics: Mapping[int, Mapping[str, float]]
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
