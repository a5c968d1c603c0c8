"""The first line of a run on the console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flsimulation.events import NOT_DIRECT, RunStarted


def title(event: RunStarted) -> str:
    """What runs: strategy, clients, data, model, seed and GPU."""
    spec = event.experiment
    clients = f"{spec.data.clients:,} client{'s' * (spec.data.clients > 1)}"
    return (
        f"{spec.name}: {spec.strategy.name}, {clients}, "
        f"{event.train_examples:,} examples of {_short(spec.data.dataset)} "
        f"({spec.data.partition}), {_short(spec.model.class_)} with {event.parameters:,} "
        f"parameters, seed {spec.seed}" + (f", on {event.gpu}" if event.gpu else "")
    )


def engine_line(
    engine: str, why_not: str | None, step_seconds: Mapping[str, float] | None = None
) -> str:
    """Which engine trains the clients, and why not a faster one or what was measured.

    ``engine: stacked (0.21 ms a client's step; direct 0.55 ms)``, ``engine: direct (not stacked:
    it ...)``.
    """
    told = []
    if own := (step_seconds or {}).get(engine):
        others = [f"{n} {milliseconds(s)}" for n, s in (step_seconds or {}).items() if n != engine]
        told.append("; ".join([f"{milliseconds(own)} a client's step", *others]))
    elif why_not is not None:
        tried_both = engine == "direct" or NOT_DIRECT in why_not
        told.append(f"not stacked: {why_not}" if tried_both else why_not)
    return f"engine: {engine}" + "".join(f" ({text})" for text in told)


def client_of(partition: int, sites: Sequence[str] = ()) -> str:
    """A client's number, with the name of its site if it has one: ``client 1 (lodz)``."""
    return f"client {partition}" + (f" ({sites[partition]})" if partition < len(sites) else "")


def milliseconds(seconds: float) -> str:
    """``0.21 ms``, ``12 ms``: two digits, or all before the point."""
    value = 1000 * seconds
    digits = max(0, 1 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f} ms"


def _short(reference: str) -> str:
    """A class reference without the folders of its path: ``/a/b/net.py:Net`` -> ``net.py:Net``."""
    return reference.removeprefix("file:").rpartition("/")[2] if "/" in reference else reference
