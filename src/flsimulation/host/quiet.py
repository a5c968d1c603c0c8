"""Lightning without the lines it prints for every fit; a simulation has thousands of them."""

from __future__ import annotations

import logging
import warnings

from flsimulation.host.warned import redirect_loggers


def quiet_lightning() -> None:
    """Silence Lightning's notices and hints; its warnings about the module still show."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from lightning_fabric.utilities.warnings import PossibleUserWarning

    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for place in (r"pytorch_lightning\.", r"lightning_fabric\."):
        for about_itself in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=about_itself, module=place)
    redirect_loggers()
