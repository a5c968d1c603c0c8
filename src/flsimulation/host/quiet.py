"""Lightning without the lines it prints for every fit; a simulation has thousands of them."""

from __future__ import annotations

import logging
import sys
import warnings

from flsimulation.host.warned import redirect_loggers


def quiet_lightning() -> None:
    """Silence Lightning's notices and hints; its warnings about the module still show.

    Also of ``lightning.pytorch``, which is the same under another name, if that is imported.
    """
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from lightning_fabric.utilities.warnings import PossibleUserWarning

    theirs = sys.modules.get("lightning.fabric.utilities.warnings")
    for category in (PossibleUserWarning, getattr(theirs, "PossibleUserWarning", None)):
        if category is not None:
            warnings.filterwarnings("ignore", category=category)
    for place in (r"pytorch_lightning\.", r"lightning_fabric\.", r"lightning\.(pytorch|fabric)\."):
        for about_itself in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=about_itself, module=place)
    redirect_loggers()
