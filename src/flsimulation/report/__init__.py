"""What a run was, from its run directory alone: tables, plots and one HTML page."""

from flsimulation.report.canvas import load_plots, png
from flsimulation.report.log import RunLog, read_run
from flsimulation.report.page import write_pngs, write_report
from flsimulation.report.partition import partition_figure

__all__ = [
    "RunLog",
    "load_plots",
    "partition_figure",
    "png",
    "read_run",
    "write_pngs",
    "write_report",
]
