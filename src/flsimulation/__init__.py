"""FLSimulation: run a federation and watch it."""

__version__ = "0.1.0"
