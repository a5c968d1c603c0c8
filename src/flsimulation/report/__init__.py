"""What a run was, from its run directory alone: tables, plots and one HTML page."""

from flsimulation.report.figures.canvas import load_plots, png
from flsimulation.report.figures.partition import partition_figure
from flsimulation.report.page import write_pngs, write_report

__all__ = [
    "load_plots",
    "partition_figure",
    "png",
    "write_pngs",
    "write_report",
]
