"""A cohort's part in a round, answered together: many clients' training, or their evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from flwr.app import ConfigRecord, Message

from flsimulation.client.answers import evaluation_metrics, expires, fit_metrics, number, order_of
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, RunError
from flsimulation.messages.batch import asks_average, cohort_reply
from flsimulation.messages.content import config_of, failure, model_of, reply, state_of_record
from flsimulation.training import Fitted, Terms


class Asked(NamedTuple):
    """A message of training or evaluation, and the partition of its node."""

    message: Message
    partition: int


def train_together(asked: Sequence[Asked], space: Workspace) -> Iterator[list[Message]]:
    """Answer training messages that carry the same model, some at a time.

    Parameters
    ----------
    asked : sequence of Asked
        At least one; the first one's model and settings are those of all.
    space : Workspace
        The clients' data, and who trains them.

    Raises
    ------
    RunError
        If the engine turns out not to fit the model.

    Yields
    ------
    list of Message
        The answers of the clients that were trained together; where the messages ask for the mean
        model only, one answer for all.
    """
    first = asked[0].message
    order, average = order_of(*asked[0], space), asks_average(first)
    if average and not space.engine.averages:
        raise RunError(f"this machine cannot train them together: {space.engine.why_not}")
    jobs = [space.train_job(partition, order.round) for _, partition in asked]
    terms = Terms(order.proximal_mu, order.expires, average)
    messages = {partition: message for message, partition in asked}
    for fitted in space.engine.fit(state_of_record(model_of(first)), jobs, terms):
        yield _answers(fitted, messages, space, average=average)


def evaluate_together(
    asked: Sequence[Asked], space: Workspace, config: ConfigRecord | None = None
) -> Iterator[list[Message]]:
    """Answer messages to evaluate the same model, some at a time.

    Parameters
    ----------
    asked : sequence of Asked
        At least one; the first one's model and settings are those of all.
    space : Workspace
        The clients' data, and who evaluates them.
    config : ConfigRecord, optional
        The settings, where they are not those of the first message.

    Yields
    ------
    list of Message
        The answers of the clients that were evaluated together.
    """
    first, messages = asked[0].message, {partition: message for message, partition in asked}
    settings = config_of(first) if config is None else config
    round = int(number(settings, "server-round"))
    jobs = [space.evaluation_job(partition, round) for partition in messages]
    state = state_of_record(model_of(first))
    for some in space.engine.evaluate(state, jobs, expires(first, space)):
        yield [
            _evaluated(messages[partition], partition, some[partition], space) for partition in some
        ]


def _evaluated(
    message: Message, partition: int, scored: dict[str, float] | ClientError, space: Workspace
) -> Message:
    try:
        if isinstance(scored, ClientError):
            raise scored
        return reply(message, evaluation_metrics(space, partition, scored))
    except ClientError as error:
        return failure(message, error)


def _answers(
    fitted: Fitted, messages: Mapping[int, Message], space: Workspace, *, average: bool
) -> list[Message]:
    metrics, failures = dict[int, dict[str, float]](), dict[int, ClientError]()
    answers = list[Message]()
    for partition, result in fitted.results.items():
        message = messages[partition]
        try:
            if isinstance(result, ClientError):
                raise result
            found = fit_metrics(space, partition, result)
        except ClientError as error:
            failures[partition] = error
            answers += [] if average else [failure(message, error)]
            continue
        metrics[partition] = found
        answers += [] if average else [reply(message, found, result.state)]
    if not average:
        return answers
    first = messages[next(iter(fitted.results))]
    examples = sum(int(own["num-examples"]) for own in metrics.values())
    return [cohort_reply(first, metrics, failures, fitted.mean or {}, examples)]
