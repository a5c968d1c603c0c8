"""What a client does to its update before it sends it, as the experiment requires."""

from __future__ import annotations

import functools

from flsimulation.experiment import Experiment
from flsimulation.privacy.ledger import ledger_of
from flsimulation.privacy.sources import generator
from flsimulation.privacy.transforms import Noise

CLIP = "clip-norm"
"""Largest norm of an update, among a task's settings."""
WHOLE = "unclipped"
"""1 if the update was not longer, else 0; among a client's metrics."""


class ClientPrivacy:
    """The clipping and the noise of an experiment's clients.

    Parameters
    ----------
    experiment : Experiment
        Its privacy section.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._spec = experiment, experiment.privacy

    @functools.cached_property
    def _noise(self) -> float:
        """Standard deviation of a client's own noise."""
        ledger = ledger_of(self._experiment) if self._spec.mode == "local" else None
        return ledger.noise * self._spec.clip if ledger is not None else 0.0

    def terms(self, sent: float) -> tuple[float, float]:
        """Largest norm of an update, and the standard deviation of the noise on it; zeros for neither.

        Parameters
        ----------
        sent : float
            The norm in the task's settings; 0 if they have none.
        """
        if self._spec.mode == "central":
            return sent if sent > 0 else self._spec.clip, 0.0
        if self._spec.mode == "local":  # whatever the server sends
            return self._spec.clip, self._noise
        return 0.0, 0.0

    def noise(self, partition: int, round: int) -> Noise | None:
        """Returns a client's generator of noise, and of samples of its examples; None without noise."""
        if self._spec.mode not in ("local", "example"):
            return None
        return functools.partial(generator, self._experiment, "noise-client", round, partition)
