"""Reports the end of a task to the SuperLink, in place of a process that was killed.

Flower notices only after a minute without a heartbeat that the process has ended; until then the run
would stay in progress.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from flsimulation.internals.flower_words import ADDRESS, ROOTS, TOKEN


def fail(arguments: Sequence[str], log: Sequence[str], details: str) -> None:
    """End the task of a ``flwr-serverapp`` as failed; has no effect if the SuperLink does not answer.

    Parameters
    ----------
    arguments : sequence of str
        Arguments of the command.
    log : sequence of str
        The last lines of the run's log.
    details : str
        Why it failed, in one line.
    """
    from flsimulation.internals.flower_processes import fail_task

    options = dict(itertools.pairwise(arguments))
    if ADDRESS in options and TOKEN in options:
        roots = Path(options[ROOTS]).read_bytes() if ROOTS in options else None
        fail_task(options[ADDRESS], options[TOKEN], log, details, roots=roots)
