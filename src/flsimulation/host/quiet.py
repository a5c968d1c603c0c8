"""Lightning without the lines it prints for every fit; a simulation has thousands of them."""

from __future__ import annotations

import logging
import sys
import warnings


def quiet_lightning() -> None:
    """Silence Lightning's notices and hints; warnings of the user's own code still show.

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
        warnings.filterwarnings("ignore", module=place)
