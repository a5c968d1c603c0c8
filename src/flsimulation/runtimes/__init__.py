"""Who carries the messages between the server and the clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from flsimulation.client.workspace import Workspace
from flsimulation.events import Sink
from flsimulation.experiment import Experiment
from flsimulation.server.app import Start

Federate: TypeAlias = Callable[[Experiment, Iterable[Sink], Workspace | None, Start | None], None]
"""Runs a federation: its experiment, who is told, the data and model, and where it goes on."""
