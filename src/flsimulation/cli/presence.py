"""Lines about clients that are missing, join, leave, or are waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flsimulation.events import ClientMoved, ClientsAwaited, ClientsConnected

WORDS: Mapping[str, str] = {
    "train": "training",
    "evaluate": "evaluating",
    "final": "final evaluation",
    "keys": "exchanging keys",
    "shares": "exchanging shares of keys",
    "unmask": "removing masks",
}
"""Names of the phases."""
_NAMED = 3  # most clients named in one line


def connected(event: ClientsConnected) -> str:
    """How many clients are connected, which have left, and how long the server waits."""
    missing = len(event.partitions) < event.expected
    text = f"clients: {len(event.partitions)} of {event.expected} connected"
    if event.gone:
        names = [f"client {p} ({name})" for p, name in event.gone.items()]
        text += f"; {some(names)} disconnected"
    if missing and event.patience is not None:
        whom = "it" if len(event.gone) == 1 else "the others"
        text += f", waiting for {whom} for up to {event.patience:g} s"
    return text


def moved(event: ClientMoved) -> str:
    """Who joined, left or was refused, and when."""
    who = f"client {event.name}"
    if event.partition is not None and str(event.partition) != event.name:
        who = f"client {event.partition} ({event.name})"
    when = f"in round {event.round}" if event.round else "before round 1"
    if event.move == "refused":
        return f"{who} was refused {when}: {event.why}"
    if event.move == "left":
        return f"{who} left {when}; the run continues without it"
    return f"{who} {event.move} {when}; it takes part from the next round on"


def awaited(event: ClientsAwaited, rounds: int) -> str:
    """Which clients a phase waits for."""
    clients = "clients" if len(event.partitions) > 1 else "client"
    names = some([str(partition) for partition in event.partitions])
    return (
        f"round {event.round}/{rounds}, {WORDS[event.phase]}: waiting for {clients} {names}, "
        f"{event.seconds:.0f} s so far; the others took at most {event.others:.0f} s"
    )


def some(names: Sequence[str], between: str = ", ") -> str:
    """The first names, and the number of the others."""
    more = f"{between}{len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return between.join(names[:_NAMED]) + more
