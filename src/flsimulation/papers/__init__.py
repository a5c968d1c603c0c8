"""Published figures, and ours beside them."""

from flsimulation.papers.measures import measure_of, rounds_to
from flsimulation.papers.reproduce import Found, Reproduction, Trial
from flsimulation.papers.spec import Paper, Row, load_paper, names
from flsimulation.papers.table import HEADS, cells

__all__ = [
    "HEADS",
    "Found",
    "Paper",
    "Reproduction",
    "Row",
    "Trial",
    "cells",
    "load_paper",
    "measure_of",
    "names",
    "rounds_to",
]
