"""The first line of a run on the console."""

from __future__ import annotations

from flsimulation.events import RunStarted


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


def _short(reference: str) -> str:
    """A class reference without the folders of its path: ``/a/b/net.py:Net`` -> ``net.py:Net``."""
    return reference.removeprefix("file:").rpartition("/")[2] if "/" in reference else reference
