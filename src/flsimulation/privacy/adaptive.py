"""A clipping norm that follows a quantile of the clients' norms.

Source: Andrew et al., "Differentially Private Learning with Adaptive Clipping" (NeurIPS 2021), algorithm 1
and theorem 1.
"""

from __future__ import annotations

import math


def noise_of_updates(noise_multiplier: float, count_noise: float) -> float:
    """Noise multiplier of the sum of updates, of which and the noisy count the whole is composed.

    Parameters
    ----------
    noise_multiplier : float
        Of the whole, as the accountant counts it; z of the paper.
    count_noise : float
        Standard deviation of the noise on the number of updates that are not clipped; sigma_b.

    Returns
    -------
    float
        (z^-2 - (2 sigma_b)^-2)^(-1/2), more than ``noise_multiplier``.

    Raises
    ------
    ValueError
        If the count alone would spend more than the whole.
    """
    left = noise_multiplier**-2 - (2 * count_noise) ** -2
    if left <= 0:
        raise ValueError(f"must be more than half of the noise multiplier {noise_multiplier:.4g}")
    return 1 / math.sqrt(left)


def noisy_share(unclipped: int, clipped: int, expected: float, noise: float) -> float:
    """Share of the updates that are not clipped, from a noisy count.

    Each client's part is a half, up or down, so that one client more changes the sum by no more.

    Parameters
    ----------
    unclipped, clipped : int
        Clients whose update is not longer than the norm, and those whose update is.
    expected : float
        Clients of a round, on average.
    noise : float
        What is added to the count.
    """
    return ((unclipped - clipped) / 2 + noise) / expected + 0.5


def next_norm(norm: float, share: float, quantile: float, rate: float) -> float:
    """The norm of the next round: norm exp(-rate (share - quantile))."""
    return norm * math.exp(-rate * (share - quantile))
