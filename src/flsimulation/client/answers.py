"""Executes a batch's tasks with the engine, and returns their outcomes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from flwr.app import ConfigRecord

from flsimulation.client.causes import Causes
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError
from flsimulation.events import RESERVED, Phase
from flsimulation.host.warned import taken
from flsimulation.messages.batch import Batch, Mean, Outcome, Reply, Task
from flsimulation.messages.state_dicts import held_state, record_of
from flsimulation.privacy.clients import CLIP, WHOLE
from flsimulation.training import Fitted, Scored, State, Terms, Trained
from flsimulation.training.measured import Measured
from flsimulation.training.states import record_of_states


class _Alike(NamedTuple):
    """Tasks that differ only in their client."""

    phase: Phase
    round: int
    config: ConfigRecord
    partitions: list[int]


def answers(batch: Batch, space: Workspace) -> Iterator[Reply]:
    """Execute a batch's tasks, in their order.

    Parameters
    ----------
    batch : Batch
        Tasks of any number of the experiment's clients.
    space : Workspace
        Their data, and the engine.

    Raises
    ------
    RunError
        If the engine turns out not to support the model.

    Yields
    ------
    Reply
        The outcomes of clients that were trained or evaluated together, as soon as available.
    """
    model = held_state(batch.model)
    for tasks in _alike(batch.tasks):
        if tasks.phase == "train":
            yield from _trained(tasks, model, batch, space)
        else:
            yield from _evaluated(tasks, model, batch, space)


def _alike(tasks: Sequence[Task]) -> list[_Alike]:
    found: dict[tuple[Phase, int, int], _Alike] = {}
    for partition, phase, round, config in tasks:
        key = (phase, round, id(config))
        if key not in found:
            found[key] = _Alike(phase, round, config, [])
        found[key].partitions.append(partition)
    return list(found.values())


def _trained(tasks: _Alike, model: State, batch: Batch, space: Workspace) -> Iterator[Reply]:
    jobs = [space.train_job(partition, tasks.round) for partition in tasks.partitions]
    causes = Causes(space, model, tasks.round)
    clip, noise = space.private.terms(_number(tasks.config, CLIP))
    mu = _number(tasks.config, "proximal-mu")
    terms = Terms(mu, batch.expires, batch.average, clip, noise)
    for fitted in space.engine.fit(model, jobs, terms):
        outcomes = [
            _fit(partition, done, space, causes) for partition, done in fitted.results.items()
        ]
        yield _reply(outcomes, space, _mean(fitted, outcomes, by_clients=clip > 0 and not noise))


def _evaluated(tasks: _Alike, model: State, batch: Batch, space: Workspace) -> Iterator[Reply]:
    jobs = [space.evaluation_job(partition, tasks.round) for partition in tasks.partitions]
    causes = Causes(space, model, tasks.round)
    for scored in space.engine.evaluate(model, jobs, batch.expires):
        yield _reply(_scores(tasks.phase, scored, space, causes), space)


def _reply(outcomes: Sequence[Outcome], space: Workspace, mean: Mean | None = None) -> Reply:
    return Reply(outcomes, mean, space.engine.name, space.engine.why_not, taken())


def _mean(fitted: Fitted, outcomes: Sequence[Outcome], *, by_clients: bool) -> Mean | None:
    weights = [
        1 if by_clients else int(own.metrics["num-examples"])
        for own in outcomes
        if own.error is None
    ]
    if fitted.mean is None or not any(weights):
        return None
    return Mean(record_of(fitted.mean), sum(weights))


def _fit(partition: int, done: Trained | ClientError, space: Workspace, causes: Causes) -> Outcome:
    try:
        if isinstance(done, ClientError):
            raise causes.of_training(partition, done)
        defined, left_out = _defined(done.scores)
        metrics = {
            **defined,
            "num-examples": space.data.train_size(partition),
            "epochs": space.experiment.of_client(partition).train.epochs,
            "steps": done.steps,
            "seconds": done.seconds,
        }
        if done.is_whole is not None and space.experiment.privacy.mode == "central":
            metrics[WHOLE] = float(done.is_whole)
    except ClientError as error:
        return Outcome(partition, "train", {}, error)
    model = record_of(done.state) if done.state else None
    return Outcome(partition, "train", metrics, None, model, None, left_out)


def _scores(phase: Phase, scored: Scored, space: Workspace, causes: Causes) -> list[Outcome]:
    outcomes = []
    for partition, scores in scored.items():
        try:
            if isinstance(scores, ClientError):
                raise causes.of_evaluation(partition, scores)
            examples = len(space.data.validation_indices(partition))
            defined, left_out = _defined(scores)
            metrics = {**defined, "num-examples": examples}
            states = record_of_states(scores) if phase == "evaluate" else None
            outcomes.append(Outcome(partition, phase, metrics, None, None, states, left_out))
        except ClientError as error:
            outcomes.append(Outcome(partition, phase, {}, error))
    return outcomes


def _defined(scores: Mapping[str, float]) -> tuple[Mapping[str, float], Mapping[str, str]]:
    """The values that the module logged, and why others are not defined.

    Raises
    ------
    ClientError
        For a reserved name, and for an infinity.
    """
    if not RESERVED.isdisjoint(scores):
        taken = min(RESERVED & scores.keys())
        raise ClientError(
            "error", f"the module logs {taken!r}, which is a reserved name; use another"
        )
    if all(map(math.isfinite, scores.values())):
        return scores, {}
    if infinite := [name for name, value in scores.items() if math.isinf(value)]:
        raise ClientError("diverged", f"its {infinite[0]} is {scores[infinite[0]]}")
    why = scores.why_not if isinstance(scores, Measured) else {}
    left_out = {name: why.get(name, "NaN") for name, value in scores.items() if math.isnan(value)}
    return {name: scores[name] for name in scores if name not in left_out}, left_out


def _number(config: Mapping[str, object], key: str) -> float:
    """A number among a strategy's settings; 0 if it is missing."""
    value = config.get(key, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
