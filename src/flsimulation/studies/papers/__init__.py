"""Reproductions of published figures."""

from flsimulation.studies.papers.measures import measure_of, rounds_to
from flsimulation.studies.papers.reproduce import Found, Reproduction, Trial
from flsimulation.studies.papers.spec import Paper, Row, load_paper, names
from flsimulation.studies.papers.table import HEADS, cells

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
