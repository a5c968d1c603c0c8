"""An audit in words: for the page and the terminal."""

from __future__ import annotations

from flsimulation.report.formats import count, score
from flsimulation.rundir import RunRecord
from flsimulation.rundir.audit import Audit, read_audit

HEADINGS = ("Membership inference", "AUC", "TPR at 0.1 % FPR", "Members", "Others")
_NAMES = {
    "loss": "Final model, loss",
    "lira": "Final model, LiRA",
    "update": "One client's update, loss",
}


def audit_of(run: RunRecord) -> Audit | None:
    """The audit of the run's final model; None without one, and for one of another model.

    A run that was resumed has another model than its audit before.
    """
    found = read_audit(run.path)
    if found is None or found.weights_sha256 != run.manifest.get("weights-sha256"):
        return None
    return found


def rows(found: Audit) -> list[tuple[str, ...]]:
    """A row for each attack, under `HEADINGS`."""
    return [
        (
            _NAMES.get(own.name, own.name)
            + (f" with {found.shadows} shadow models" if own.name == "lira" else ""),
            f"{own.auc:.3f} \N{PLUS-MINUS SIGN} {own.auc_error:.3f}",
            f"{own.tpr:.2%}",
            count(own.members),
            count(own.others),
        )
        for own in found.attacks
    ]


def guarantee(found: Audit) -> str:
    """The accuracy, and what the run's ``[privacy]`` guarantees."""
    if found.privacy == "none":
        promised = "no guarantee ([privacy] is not set)"
    else:
        epsilon = "not known" if found.epsilon is None else f"{found.epsilon:.3g}"
        promised = f"privacy.mode {found.privacy}, epsilon {epsilon} at delta {found.delta:g}"
    accuracy = "" if found.accuracy is None else f"accuracy {score('accuracy', found.accuracy)}; "
    return f"{accuracy}{promised}"


def inversion_sentence(found: Audit) -> str:
    """How near the inverted images are; empty without any."""
    own = found.inversion
    if own is None:
        return ""
    number = len(own.mse)
    return (
        f"gradient inversion of a batch of {number}: PSNR {min(own.psnr):.1f} to {max(own.psnr):.1f} dB, mean squared "
        f"error {min(own.mse):.2g} to {max(own.mse):.2g} (the mean of other images: {own.guess:.2g}); "
        f"{own.labels} of {number} labels recovered"
    )
