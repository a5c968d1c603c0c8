"""Published figures, and ours beside them."""

from flsimulation.papers.measures import measure_of, rounds_to
from flsimulation.papers.reproduce import Found, Reproduction, Trial
from flsimulation.papers.spec import Paper, Row, load_paper, names

__all__ = [
    "Found",
    "Paper",
    "Reproduction",
    "Row",
    "Trial",
    "load_paper",
    "measure_of",
    "names",
    "rounds_to",
]
