"""A ClientApp that answers for many clients at once: a share of the cohort in one message."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from flsimulation.client.cohort import Asked, evaluate_together, train_together
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, describe_error
from flsimulation.experiment import unflatten
from flsimulation.messages.batch import bundle, merged
from flsimulation.messages.content import failure

PARTITIONS = "partition-ids"  # in the node config: whose share a message is, as "0,3,6"

app = ClientApp()
"""Answers with what all clients of the share would answer, bundled."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients of the share: together where the model allows it, else one by one."""
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Let the clients of the share evaluate: together where the model allows it, else one by one."""
    return _answer(message, context)


def load() -> ClientApp:
    """The app, for whoever wants a function that gives it."""
    return app


def prepare(run_config: Mapping[str, bool | float | int | str]) -> None:
    """Have data and model ready before the first message, whose answer says why if they cannot be had."""
    with contextlib.suppress(Exception):
        _workspace(tuple(sorted(run_config.items())))


def _answer(message: Message, context: Context) -> Message:
    partitions = [int(p) for p in str(context.node_config[PARTITIONS]).split(",")]
    asked = [Asked(_own(message, partition), partition) for partition in partitions]
    answers: dict[int, Message] = {}
    try:
        space = _workspace(tuple(sorted(context.run_config.items())))
        for answer in _answers(asked, space):
            answers[int(answer.metadata.reply_to_message_id)] = answer
    except Exception as error:  # of all: no data on this machine, or the program of many failed
        why = ClientError("error", describe_error(error))
        answers = {partition: failure(own, why) for own, partition in asked}
    return bundle(message, answers)


def _answers(asked: Sequence[Asked], space: Workspace) -> Iterator[Message]:
    first = asked[0].message
    if first.metadata.message_type == MessageType.TRAIN:
        waves = train_together(asked, space)
        yield from merged(first, [answer for wave in waves for answer in wave])
        return
    yield from itertools.chain.from_iterable(evaluate_together(asked, space))


def _own(message: Message, partition: int) -> Message:
    """The message as one client's, so that its answer tells whose it is."""
    own = copy.deepcopy(message, {id(message.content): message.content})
    vars(own.metadata)["_message_id"] = str(partition)  # as Flower's own grids set it
    return own


@functools.lru_cache(maxsize=1)
def _workspace(run_config: tuple[tuple[str, bool | float | int | str], ...]) -> Workspace:
    """Data and trainer of an experiment; they stay for the process's next message."""
    return Workspace.load(unflatten(dict(run_config)), processes=1)
