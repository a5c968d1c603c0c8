"""What an experiment must not combine with privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flsimulation.experiment.spec import Experiment

AVERAGING = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi")
"""Strategies whose step is a function of the mean update, to which the noise is added."""


def check_privacy(experiment: Experiment) -> None:
    """Raise ``ValueError`` for keys that do not fit each other, or that undo the guarantee.

    Parameters
    ----------
    experiment : Experiment
        In the mode `local` all that the server does comes after the noise.
    """
    experiment.privacy.check()
    if experiment.privacy.mode == "example" and experiment.data.partition == "drawn":
        raise ValueError(
            "data.partition is 'drawn', so that clients share examples, and privacy.mode 'example' counts what one "
            "client spends of each; set 'iid' or another partition"
        )
    if experiment.privacy.mode != "central":
        return
    name, least = experiment.strategy.name, experiment.round.min_results
    if name not in AVERAGING:
        raise ValueError(
            f"strategy.name is {name!r}, which does not only use the mean of the updates, to which "
            f"privacy.mode 'central' adds the noise; use one of {', '.join(AVERAGING)}"
        )
    if least > 1:
        raise ValueError(
            f"round.min-results is {least}, but a cohort of privacy.mode 'central' is a sample of any "
            f"size, and its sum is divided by the same number whoever fails; leave the key out"
        )
