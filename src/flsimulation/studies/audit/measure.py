"""An audit: all attacks on one run, in the order of what they need."""

from __future__ import annotations

from pathlib import Path

from flsimulation.errors import InputError, ModelError
from flsimulation.events import scores_of
from flsimulation.rundir import RunRecord, look, number
from flsimulation.rundir.audit import Attack, Audit, Inversion
from flsimulation.studies.audit.curves import Values
from flsimulation.studies.audit.inversion import inverted, why_not_inverted
from flsimulation.studies.audit.losses import Losses
from flsimulation.studies.audit.membership import Tell, by_loss, by_shadows
from flsimulation.studies.audit.subject import Subject
from flsimulation.studies.audit.updates import by_updates
from flsimulation.training.work import silent

_LEAST_SHADOWS = 4
_LEAST_EXAMPLES = 10


def audit(
    run_dir: str | Path,
    *,
    shadows: int = 16,
    examples: int = 1000,
    seed: int = 0,
    tell: Tell = silent,
) -> Audit:
    """Attack a run's final model and its clients' updates.

    Parameters
    ----------
    run_dir : path
        The run directory; nothing is written into it.
    shadows : int
        Shadow models of the likelihood ratio, an even number of at least 4; 0 to leave it out.
    examples : int
        The most members, and the most others, at least 10.
    seed : int
        Of all draws; the same seed finds the same.
    tell : callable
        Called with what is done now, in a few words.

    Raises
    ------
    InputError
        If a number is not possible, or the run cannot be audited: without a final model, where its
        examples are not here, or where its labels are no classes.
    RunError
        If the model's losses are not finite, or a training failed.
    """
    _check(shadows, examples, seed)
    record = RunRecord(run_dir)
    tell("data and model")
    subject = Subject.load(record, examples, seed)
    tell(f"losses of {len(subject.pool)} examples")
    losses = Losses(subject.module).of(subject.state, subject.all_batches)
    notes: list[str] = []
    attacks = [by_loss(subject, losses)]
    if shadows:
        attacks.append(by_shadows(subject, losses, shadows, seed, tell))
    attacks += _updates(subject, losses, examples, seed, tell, notes)
    inversion = _inversion(subject, seed, tell, notes)
    return _audit(record, subject, seed, shadows, attacks, inversion, notes)


def _check(shadows: int, examples: int, seed: int) -> None:
    if shadows != 0 and (shadows < _LEAST_SHADOWS or shadows % 2):
        raise InputError(
            f"--shadows must be 0 or an even number of at least {_LEAST_SHADOWS}, got {shadows}"
        )
    if examples < _LEAST_EXAMPLES:
        raise InputError(f"--examples must be at least {_LEAST_EXAMPLES}, got {examples}")
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed must be from 0 to 2^63 - 1, got {seed}")


def _updates(
    subject: Subject, losses: Values, examples: int, seed: int, tell: Tell, notes: list[str]
) -> list[Attack]:
    found = by_updates(subject, losses, examples, seed, tell)
    if found is None:
        notes.append("updates: no class is in both the clients' examples and others")
    return [] if found is None else [found]


def _inversion(subject: Subject, seed: int, tell: Tell, notes: list[str]) -> Inversion | None:
    why_not = why_not_inverted(subject)
    if why_not is None:
        try:
            return inverted(subject, seed, tell)
        except ModelError as error:
            why_not = str(error)
    notes.append(f"gradient inversion: {why_not}")
    return None


def _audit(
    record: RunRecord,
    subject: Subject,
    seed: int,
    shadows: int,
    attacks: list[Attack],
    inversion: Inversion | None,
    notes: list[str],
) -> Audit:
    privacy = subject.experiment.privacy
    scores = scores_of(record.last_evaluated)
    return Audit(
        weights_sha256=look(record.manifest, "weights-sha256"),
        seed=seed,
        shadows=shadows,
        privacy=privacy.mode,
        epsilon=number(record.rounds[-1], "privacy", "epsilon") if record.rounds else None,
        delta=None if privacy.mode == "none" else privacy.delta,
        accuracy=scores.get("accuracy"),
        attacks=tuple(attacks),
        inversion=inversion,
        notes=tuple(notes),
    )
