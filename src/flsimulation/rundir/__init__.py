"""The run directory: one format, written and read only in this package."""

from flsimulation.rundir.jsonlines import Record, look, number
from flsimulation.rundir.reader import RunRecord, RunResult

__all__ = ["Record", "RunRecord", "RunResult", "look", "number"]
