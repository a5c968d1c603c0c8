"""The run directory: one format, written and read only in this package."""

from flsimulation.rundir.jsonlines import JsonObject, look, number
from flsimulation.rundir.reader import RunRecord, RunResult

__all__ = ["JsonObject", "RunRecord", "RunResult", "look", "number"]
