"""The command that resumes a run, for messages."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

COMMAND = "FLSIM_COMMAND"
"""Environment: the command in place of ``flsim run``; set by compose.yaml."""


def resume_command(
    run_dir: str | Path,
    superlink: str | None = None,
    clients: int | None = None,
    compose: str | None = None,
) -> str:
    """The complete command that resumes a run.

    Parameters
    ----------
    run_dir : path
        The run directory; on a network, a path on the SuperLink's machine.
    superlink : str, optional
        Its address from here, if that may differ from the one in the run's experiment.
    clients : int, optional
        Number of clients of the run. It is set in containers: Compose would start its default number
        otherwise.
    compose : str, optional
        The command in place of ``flsim run`` if only the containers can access the directory; by
        default that of the environment.
    """
    if command := os.environ.get(COMMAND, compose or ""):
        named = f"CLIENTS={clients} " if clients is not None else ""
        return f"{named}{command} --resume {shlex.quote(str(run_dir))}"
    where = f" --superlink {superlink}" if superlink is not None else ""
    return f"flsim run --resume {shlex.quote(str(run_dir))}{where}"
