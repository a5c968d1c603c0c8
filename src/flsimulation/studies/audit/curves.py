"""How well a score separates members from others: AUC, and the true positives at few false ones."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

FEW = 1e-3
"""The rate of false positives at which true ones are reported, as by Carlini et al. (2022)."""


def auc(members: Values, others: Values) -> float:
    """The area under the ROC curve: how often a member's score is above another's, ties as one half.

    Parameters
    ----------
    members, others : float64 [n], [m]
        Scores, higher for what looks like a member.

    Returns
    -------
    float
        0.5 for a score that tells nothing, 1 for one that separates them.
    """
    values = np.concatenate([members, others])
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n, m = len(members), len(others)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def tpr_at(members: Values, others: Values, fpr: float = FEW) -> float:
    """The largest share of members found with a threshold that takes at most ``fpr`` of the others for one.

    With fewer than ``1 / fpr`` others, with a threshold that takes none of them.
    """
    allowed = math.floor(fpr * len(others) + 1e-9)
    if allowed >= len(others):
        return 1.0
    return float(np.mean(members > np.sort(others)[::-1][allowed]))


def deviation(area: float, members: int, others: int) -> float:
    """Standard error of an AUC. Source: Hanley and McNeil, Radiology 143 (1982)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (members - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)
    return math.sqrt(max(0.0, spread) / (members * others))
