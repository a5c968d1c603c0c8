"""Images that an audit found from a gradient, below the true ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flsimulation.report.audited import audit_of
from flsimulation.report.figures.canvas import house_style
from flsimulation.report.figures.mosaic import Tiles, mosaic_figure
from flsimulation.rundir import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@house_style()
def inverted_figure(run: RunRecord) -> Figure | None:
    """Draw the true and the found images of the run's audit; None without any."""
    found = audit_of(run)
    if found is None or found.inversion is None:
        return None
    rows = [found.inversion.true, found.inversion.found]
    return mosaic_figure(
        Tiles(rows, ["true", "found"], None, ()), "Images from a client's gradient"
    )
