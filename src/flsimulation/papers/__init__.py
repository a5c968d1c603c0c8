"""Published figures, and ours beside them."""

from flsimulation.papers.measures import MEASURES, rounds_to
from flsimulation.papers.reproduce import Found, Reproduction, Trial
from flsimulation.papers.spec import Paper, Row, load_paper, names

__all__ = [
    "MEASURES",
    "Found",
    "Paper",
    "Reproduction",
    "Row",
    "Trial",
    "load_paper",
    "names",
    "rounds_to",
]
