"""The command by which people resume a run."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

COMMAND = "FLSIM_COMMAND"
"""Environment: what people type for ``flsim run`` here; set by compose.yaml."""


def resume_command(
    run_dir: str | Path,
    superlink: str | None = None,
    clients: int | None = None,
    compose: str | None = None,
) -> str:
    """The whole command by which people resume a run.

    Parameters
    ----------
    run_dir : path
        As the SuperLink sees it.
    superlink : str, optional
        Where it is seen from here, if that may be another place than the run's experiment says.
    clients : int, optional
        Of the run. In containers they are named: plain Compose would start its usual number.
    compose : str, optional
        What stands for ``flsim run`` where only the containers see the directory; by default as
        the environment says.
    """
    if command := os.environ.get(COMMAND, compose or ""):
        named = f"CLIENTS={clients} " if clients is not None else ""
        return f"{named}{command} --resume {shlex.quote(str(run_dir))}"
    where = f" --superlink {superlink}" if superlink is not None else ""
    return f"flsim run --resume {shlex.quote(str(run_dir))}{where}"
