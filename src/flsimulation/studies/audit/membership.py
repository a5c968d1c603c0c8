"""Membership inference: was this example trained on? From the final model, and from shadow models.

Sources: Yeom et al., "Privacy Risk in Machine Learning" (CSF 2018) for the threshold on the loss;
Carlini et al., "Membership Inference Attacks From First Principles" (S&P 2022), section VI, for the
offline likelihood ratio (LiRA).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from flsimulation import seeds
from flsimulation.errors import ClientError, RunError
from flsimulation.rundir.audit import Attack
from flsimulation.studies.audit.curves import Values, auc, deviation, tpr_at
from flsimulation.studies.audit.losses import Losses, confidence
from flsimulation.studies.audit.subject import Subject
from flsimulation.training import Job, Terms, engine_for, processes_for

_OWN_VARIANCE = 64
"""Shadow models from which each example has a deviation of its own; with fewer all share one, as in the paper."""
Tell = Callable[[str], None]
"""Called with what is done now, in a few words."""


def attack(name: str, members: Values, others: Values) -> Attack:
    """How well scores separate members from others; higher scores are of members."""
    area, n, m = auc(members, others), len(members), len(others)
    return Attack(name, area, deviation(area, n, m), tpr_at(members, others), n, m)


def by_loss(subject: Subject, losses: Values) -> Attack:
    """The attack that takes examples of a small loss for members.

    Parameters
    ----------
    subject : Subject
        The run.
    losses : float64 [n]
        Of the final model on the whole pool.
    """
    count = subject.pool.members
    return attack("loss", -losses[:count], -losses[count:])


def by_shadows(subject: Subject, losses: Values, shadows: int, seed: int, tell: Tell) -> Attack:
    """Offline LiRA: is the confidence above that of models which never saw the example?

    Parameters
    ----------
    subject : Subject
        The run.
    losses : float64 [n]
        Of the final model on the whole pool.
    shadows : int
        Models to train, each on a random half of the pool; an even number.
    seed : int
        Of the halves, and of the models' training.
    tell : callable
        Called with the progress.

    Raises
    ------
    RunError
        If a shadow model's training failed.
    """
    halves = halves_of(len(subject.pool), shadows, seed)
    seen = np.zeros((shadows, len(subject.pool)), bool)
    for number, half in enumerate(halves):
        seen[number, half] = True
    found = confidence(_shadow_losses(subject, halves, seed, tell))
    scores = likelihood(confidence(losses), found, seen)
    return attack("lira", scores[: subject.pool.members], scores[subject.pool.members :])


def halves_of(examples: int, shadows: int, seed: int) -> list[np.ndarray]:
    """What each shadow model trains on: random halves and, as the next model's, the rest.

    So each example is unseen by exactly half of the models.
    """
    found: list[np.ndarray] = []
    for pair in range(shadows // 2):
        order = seeds.rng(seed, "audit halves", partition=pair).permutation(examples)
        found += [np.sort(order[: examples // 2]), np.sort(order[examples // 2 :])]
    return found


def likelihood(observed: Values, shadows: Values, seen: np.ndarray) -> Values:
    """How far the observed confidences are above those of the models that did not see the example.

    Parameters
    ----------
    observed : float64 [n]
        Of the audited model.
    shadows : float64 [shadows, n]
        Of the shadow models.
    seen : bool [shadows, n]
        Whether the model trained on the example.

    Returns
    -------
    float64 [n]
        In standard deviations: it orders examples as the paper's one-sided probability, which rounds to 1.
    """
    unseen = ~seen
    count = unseen.sum(axis=0)
    mean = np.where(unseen, shadows, 0).sum(axis=0) / count
    squares = np.where(unseen, (shadows - mean) ** 2, 0).sum(axis=0)
    if len(shadows) >= _OWN_VARIANCE:
        deviation = np.sqrt(squares / (count - 1))
    else:
        deviation = np.full(len(mean), math.sqrt(squares.sum() / (count - 1).sum()))
    return np.asarray((observed - mean) / np.maximum(deviation, 1e-9))


def _shadow_losses(subject: Subject, halves: list[np.ndarray], seed: int, tell: Tell) -> Values:
    """Losses of each shadow model on the whole pool, [shadows, n]; they train as clients do, together."""
    experiment, pool, count = subject.experiment, subject.pool, len(halves)
    epochs = shadow_epochs(subject)
    spec = experiment.train.model_copy(update={"epochs": epochs, "validate_": False, "sites": {}})
    tell(f"{count} shadow models, {epochs} epochs of {len(pool) // 2} examples")
    engine = engine_for(
        *(subject.module, spec, pool.x, pool.y, count, processes_for(spec, count)),
        prepared=subject.prepared,
    )
    jobs = [
        Job(
            number,
            subject.shuffled(half, seed, number),
            functools.partial(seeds.integer, seed, "audit fit", 0, number),
            round=1,
        )
        for number, half in enumerate(halves)
    ]
    scorer, found = Losses(subject.module), np.zeros((count, len(pool)))
    done = 0
    try:
        for fitted in engine.fit(subject.initial, jobs, Terms()):
            for number, result in fitted.results.items():
                if isinstance(result, ClientError):
                    raise RunError(f"shadow model {number} failed: {result}") from result
                found[number] = scorer.of(result.state, subject.all_batches)
            done += len(fitted.results)
            tell(f"{done} of {count} shadow models")
    finally:
        engine.close()
    return found


def shadow_epochs(subject: Subject) -> int:
    """Epochs of a shadow model: as many as the clients' in all rounds together, on average."""
    rounds = subject.record.rounds[-1]["round"] if subject.record.rounds else 1
    experiment = subject.experiment
    share = experiment.cohort_size / experiment.data.clients
    return max(1, math.ceil(rounds * experiment.train.epochs * share - 1e-9))
