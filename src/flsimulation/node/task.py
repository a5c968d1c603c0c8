"""What a process that was killed would have told the SuperLink: the end of its task.

Flower misses the process only after a minute without a heartbeat; until then the run is in progress.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flsimulation.internals.flower_words import ADDRESS, INSECURE, TOKEN


def fail(arguments: Sequence[str], log: Sequence[str], details: str) -> None:
    """End the task of a ``flwr-serverapp`` as failed; nothing happens where nobody answers.

    Parameters
    ----------
    arguments : sequence of str
        Those that the command was started with.
    log : sequence of str
        The last lines of the run's log.
    details : str
        Why, in one line.
    """
    from flsimulation.internals.flower_processes import fail_task

    given = dict(itertools.pairwise(arguments))
    if ADDRESS in given and TOKEN in given:
        fail_task(given[ADDRESS], given[TOKEN], log, details, insecure=INSECURE in arguments)
