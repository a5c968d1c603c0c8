"""Local training: who computes, behind one interface."""

from flsimulation.training.batches import Batches
from flsimulation.training.engine import Before, Engine, engine_for, processes_for
from flsimulation.training.jobs import Fitted, Job, Scored, State, Terms, Trained

__all__ = [
    "Batches",
    "Before",
    "Engine",
    "Fitted",
    "Job",
    "Scored",
    "State",
    "Terms",
    "Trained",
    "engine_for",
    "processes_for",
]
