"""What a run's models and updates tell about its training examples: attacks, carried out and measured."""

from flsimulation.studies.audit.measure import audit

__all__ = ["audit"]
