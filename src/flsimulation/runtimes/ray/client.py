"""The ClientApp of a Ray actor: keeps data, model and engine for further messages."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping

from flwr.app import Context
from flwr.clientapp import ClientApp

from flsimulation.client.app import make_client_app
from flsimulation.client.vault import SeededVault
from flsimulation.client.workspace import Workspace
from flsimulation.experiment import Experiment, unflatten
from flsimulation.host.warned import begin_sending


def prepare(run_config: Mapping[str, bool | float | int | str]) -> None:
    """Load everything before the first message; replies contain any error, and all warnings."""
    begin_sending()
    with contextlib.suppress(Exception):
        _loaded(tuple(sorted(run_config.items())))


def _workspace(context: Context) -> Workspace:
    return _loaded(tuple(sorted(context.run_config.items())))


@functools.lru_cache(maxsize=1)
def _loaded(run_config: tuple[tuple[str, bool | float | int | str], ...]) -> Workspace:
    return Workspace.load(unflatten(dict(run_config)), processes=1)


def _vault(experiment: Experiment) -> SeededVault:
    return SeededVault(experiment.seed)  # each phase may be another actor's


app = make_client_app(_workspace, vault=_vault)
"""Executes the tasks of an actor's share of a cohort."""


def load() -> ClientApp:
    """Return the app; a function that other processes can import by name."""
    return app
