"""Why a client's SuperNode ended by itself: Flower says only that it could not connect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from flsimulation.errors import InputError
from flsimulation.internals.flower_words import KEY, LINK, ROOTS
from flsimulation.runtimes.network.answering import check_accepts
from flsimulation.runtimes.network.names import LEFT
from flsimulation.security.keys import ensure_key, fingerprint


def explained(program: Callable[[], None], arguments: Sequence[str]) -> None:
    """Run a SuperNode; print a sentence with the remedy if it ends with an error.

    Parameters
    ----------
    program : callable
        Runs it; raises `SystemExit`.
    arguments : sequence of str
        Those of the SuperNode.
    """
    try:
        program()
    except SystemExit as end:
        if end.code not in (None, 0, LEFT):
            print(f"flsim: {why_not_connected(arguments)}", flush=True)
        raise


def why_not_connected(arguments: Sequence[str]) -> str:
    """What keeps a SuperNode from its SuperLink, as far as can be seen from here.

    Parameters
    ----------
    arguments : sequence of str
        Those of the SuperNode.
    """
    given = dict(pairwise(arguments))
    superlink = given[LINK]
    if ROOTS not in given or KEY not in given:
        return f"the SuperLink at {superlink} does not accept this client"
    try:
        if why := check_accepts(superlink, Path(given[ROOTS])):
            return why
        key = Path(given[KEY])
        name, printed = key.stem, fingerprint(ensure_key(key))
    except InputError as error:
        return str(error)
    return (
        f"the SuperLink at {superlink} refuses the key {printed}: it is not admitted there or was "
        f"revoked (on its machine: flsim admit {name} {name}.pub), or a process with this key is "
        "connected, or was until some seconds ago; the client tries again"
    )
