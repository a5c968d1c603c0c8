"""Local training: one client at a time, with plain Lightning."""

from flsimulation.training.batches import Batches
from flsimulation.training.local import Fit, LocalTrainer, State

__all__ = ["Batches", "Fit", "LocalTrainer", "State"]
