"""A cohort's part in a round, answered together: many clients' training, or their evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from flwr.app import ConfigRecord, Message

from flsimulation.client.answers import evaluation_metrics, expires, fit_metrics, number, order_of
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, RunError, describe_error
from flsimulation.messages.batch import asks_average, cohort_reply
from flsimulation.messages.content import config_of, failure, model_of, reply, state_of_record
from flsimulation.training import CohortTrainer, NotStackable, Scored
from flsimulation.training.stacked.wave import Wave


class Asked(NamedTuple):
    """A message of training or evaluation, and the partition of its node."""

    message: Message
    partition: int


def train_together(
    asked: Sequence[Asked], space: Workspace, trainer: CohortTrainer
) -> Iterator[list[Message]]:
    """Answer training messages that carry the same model, some at a time.

    Parameters
    ----------
    asked : sequence of Asked
        At least one; the first one's model and settings are those of all.
    space : Workspace
        The clients' data.
    trainer : CohortTrainer
        Of the experiment's model.

    Raises
    ------
    RunError
        If the model's step turns out not to be one program.

    Yields
    ------
    list of Message
        The answers of the clients that were trained together; where the messages ask for the mean
        model only, one answer for all.
    """
    first = asked[0].message
    order, average = order_of(*asked[0], space), asks_average(first)
    waves = trainer.fit(
        state_of_record(model_of(first)),
        [space.train_batches(partition, order.round) for _, partition in asked],
        proximal_mu=order.proximal_mu,
        expires=order.expires,
        average=average,
    )
    try:
        for wave in waves:
            yield _answers(wave, asked, space, average=average)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the GPU's memory does not hold the clients that train together ({describe_error(error)}); "
            f"lower train.batch-size, or set train.engine = 'sequential' or train.device = 'cpu'"
        ) from None
    except NotStackable as reason:
        raise RunError(
            f"the clients cannot be trained together after all: {reason}; set train.engine = "
            f"'sequential'"
        ) from reason


def evaluate_together(
    asked: Sequence[Asked], space: Workspace, config: ConfigRecord | None = None
) -> Iterator[list[Message]]:
    """Answer messages to evaluate the same model, some at a time.

    Parameters
    ----------
    asked : sequence of Asked
        At least one; the first one's model and settings are those of all.
    space : Workspace
        The clients' data.
    config : ConfigRecord, optional
        The settings, where they are not those of the first message.

    Yields
    ------
    list of Message
        The answers of the clients that were evaluated together.
    """
    first, messages = asked[0].message, {partition: message for message, partition in asked}
    settings = config_of(first) if config is None else config
    found = space.client_scores(
        space.state_of(model_of(first)),
        list(messages),
        round=int(number(settings, "server-round")),
        expires=expires(first, space),
    )
    for some in found:
        yield [
            _evaluated(messages[partition], partition, some[partition], space) for partition in some
        ]


def _evaluated(message: Message, partition: int, scored: Scored, space: Workspace) -> Message:
    try:
        if isinstance(scored, ClientError):
            raise scored
        return reply(message, evaluation_metrics(space, partition, scored))
    except ClientError as error:
        return failure(message, error)


def _answers(
    wave: Wave, asked: Sequence[Asked], space: Workspace, *, average: bool
) -> list[Message]:
    metrics, failures = dict[int, dict[str, float]](), dict[int, ClientError]()
    answers = list[Message]()
    for place, (client, result) in enumerate(zip(wave.clients, wave.results, strict=True)):
        message, partition = asked[client]
        try:
            if isinstance(result, ClientError):
                raise result
            found = fit_metrics(space, partition, result)
        except ClientError as error:
            failures[partition] = error
            answers += [] if average else [failure(message, error)]
            continue
        metrics[partition] = found
        answers += [] if average else [reply(message, found, wave.state(place))]
    if not average:
        return answers
    first = asked[wave.clients[0]].message
    examples = sum(int(own["num-examples"]) for own in metrics.values())
    return [cohort_reply(first, metrics, failures, wave.weights, examples)]
