"""What secure aggregation needs of the rest of an experiment."""

from __future__ import annotations

from flsimulation.experiment.privacy_section import Privacy
from flsimulation.experiment.private import AVERAGING


def check_secure(privacy: Privacy, strategy: str, cohort: int) -> None:
    """Raise ``ValueError`` if the strategy needs single updates, or the sum is one of them.

    Parameters
    ----------
    privacy : Privacy
        The section of the experiment.
    strategy : str
        Name of the strategy.
    cohort : int
        Clients that train in a round.
    """
    if not privacy.secure_aggregation:
        return
    if strategy not in AVERAGING:
        raise ValueError(
            f"privacy.secure-aggregation is true, but strategy.name {strategy!r} needs the update of each client; "
            f"use one of {', '.join(AVERAGING)}"
        )
    if cohort < 2:
        raise ValueError(
            f"privacy.secure-aggregation is true, but {cohort} client trains in a round, so that the sum is its update; "
            f"raise data.clients or strategy.fraction-train"
        )
