"""Local training: one client at a time with plain Lightning, or many as one program."""

from flsimulation.training.batches import Batches
from flsimulation.training.cohort import CohortTrainer
from flsimulation.training.direct import DirectEvaluator
from flsimulation.training.evaluation import CohortEvaluator, Scored
from flsimulation.training.local import Fit, LocalTrainer, State
from flsimulation.training.step import NotStackable

__all__ = [
    "Batches",
    "CohortEvaluator",
    "CohortTrainer",
    "DirectEvaluator",
    "Fit",
    "LocalTrainer",
    "NotStackable",
    "Scored",
    "State",
]
