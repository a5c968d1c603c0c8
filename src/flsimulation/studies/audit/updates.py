"""Membership inference from what single clients send: whose loss fell in a client's own training?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from flsimulation import seeds
from flsimulation.client.workspace import Workspace
from flsimulation.errors import ClientError, RunError
from flsimulation.rundir import number
from flsimulation.rundir.audit import Attack
from flsimulation.studies.audit.curves import Values
from flsimulation.studies.audit.losses import Losses
from flsimulation.studies.audit.membership import Tell, attack
from flsimulation.studies.audit.subject import Subject
from flsimulation.training import State, Terms

_CLIENTS, _MOST = 5, 50
"""Clients whose updates are audited: at least, and at most where they have few examples."""


def by_updates(
    subject: Subject, losses: Values, examples: int, seed: int, tell: Tell
) -> Attack | None:
    """The attack that takes examples whose loss falls most in a client's update for its own.

    Each client trains as it would in the next round, from the final model. Of each, as many of its examples
    are compared as others of the same classes: in skewed data, a class alone would tell the client.

    Parameters
    ----------
    subject : Subject
        The run.
    losses : float64 [n]
        Of the final model on the whole pool.
    examples : int
        The most members, and others, of all clients together.
    seed : int
        Of the draw of clients and examples.
    tell : callable
        Called with the progress.

    Returns
    -------
    Attack or None
        Over the examples of all audited clients; None where they have no class in common with others.

    Raises
    ------
    RunError
        If a client's training failed.
    """
    rng = seeds.rng(seed, "audit updates")
    clients = _drawn(subject, examples, rng)
    scorer, found = Losses(subject.module), list[tuple[Values, Values]]()
    parts = {c: _alike(subject, c, max(1, examples // len(clients)), rng) for c in clients}
    tell(f"updates of {len(clients)} clients")
    for client, state in _states(subject, clients):
        if len(parts[client][0]):
            found.append(_scores(subject, scorer, losses, state, *parts[client]))
    if not found:
        return None
    return attack("update", *(np.concatenate(part) for part in zip(*found, strict=True)))


def _drawn(subject: Subject, examples: int, rng: np.random.Generator) -> list[int]:
    """Clients to audit: more of them where each has few examples."""
    order: list[int] = rng.permutation(np.array(subject.trained)).tolist()
    needed = math.ceil(examples / max(1, subject.data.train_size(order[0])))
    return order[: min(max(needed, _CLIENTS), _MOST)]


def _states(subject: Subject, clients: list[int]) -> Iterator[tuple[int, State]]:
    """What each client would send in the next round: clipped, and with the noise that it adds."""
    train = subject.experiment.train.model_copy(update={"validate_": False})
    experiment = subject.experiment.model_copy(update={"train": train})
    space = Workspace.load(experiment, clients=len(clients), processes=1, data=subject.data)
    rounds = subject.record.rounds
    last = rounds[-1] if rounds else {"round": 0}
    clip, noise = space.private.terms(number(last, "privacy", "clip") or 0.0)
    mu = float(experiment.strategy.parameters.get("proximal-mu", 0.0))
    jobs = [space.train_job(client, last["round"] + 1) for client in clients]
    try:
        for fitted in space.engine.fit(subject.state, jobs, Terms(mu, clip=clip, noise=noise)):
            for client, result in fitted.results.items():
                if isinstance(result, ClientError):
                    raise RunError(f"client {client} failed: {result}") from result
                yield client, result.state
    finally:
        space.engine.close()


def _alike(
    subject: Subject, client: int, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Some of a client's examples (of the training set), and as many others of each class (of the pool)."""
    pool, labels = subject.pool, subject.data.dataset.labels
    assert labels is not None  # noqa: S101 - checked when the subject was loaded
    own = rng.permutation(subject.data.train_indices(client))[:most]
    others = rng.permutation(np.arange(pool.members, len(pool)))
    mine, theirs = list[np.ndarray](), list[np.ndarray]()
    for label in np.unique(labels[own]):
        first, second = own[labels[own] == label], others[pool.labels[others] == label]
        count = min(len(first), len(second))
        mine.append(first[:count])
        theirs.append(second[:count])
    return np.concatenate(mine), np.concatenate(theirs)


def _scores(
    subject: Subject,
    scorer: Losses,
    losses: Values,
    state: State,
    own: np.ndarray,
    other: np.ndarray,
) -> tuple[Values, Values]:
    """By how much the loss of the client's examples, and of the others, fell."""
    dataset = subject.data.dataset
    batches = subject.evaluated(dataset.x_train, dataset.y_train, own)
    before = scorer.of(subject.state, batches)
    members = before - scorer.of(state, batches)
    after = scorer.of(state, subject.evaluated(subject.pool.x, subject.pool.y, other))
    return members, losses[other] - after
