"""Local training: one client at a time with plain Lightning, or many as one program."""

from flsimulation.training.batches import Batches
from flsimulation.training.direct import DirectEvaluator
from flsimulation.training.lightning import Fit, LocalTrainer, State
from flsimulation.training.stacked.compiler.step import NotStackable
from flsimulation.training.stacked.engine import CohortTrainer
from flsimulation.training.stacked.evaluation import CohortEvaluator, Scored

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
