"""The ClientApp of a network's clients, in a process that a warm server forked."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import torch
from flwr.app import Context

from flsimulation import seeds
from flsimulation.client.app import make_client_app
from flsimulation.client.workspace import Workspace
from flsimulation.events import UNSEEN
from flsimulation.experiment import Experiment, flatten, unflatten
from flsimulation.experiment.sources import check_sources
from flsimulation.internals.flower_words import CLIENT_APP
from flsimulation.messages.batch import Batch, Reply, batch_bytes, outcome_bytes
from flsimulation.node import sockets, threads
from flsimulation.node.health import keep_trouble, see_kills, take_trouble
from flsimulation.node.launches import Killed
from flsimulation.node.own_site import OwnSite
from flsimulation.runtimes.network.names import REPORTS, WARM
from flsimulation.training import Batches, Job, Terms

_prepared: tuple[int, str, Workspace] | None = None
"""A run's id, what its sites agreed on, and its data and model: for another run, files of the same
names may differ."""


def prepare(order: dict[str, Any]) -> None:
    """Load a run's data and model for the processes that are forked from this one."""
    global _prepared
    threads.hold()
    see_kills()
    experiment, agreement = unflatten(order["experiment"]), order.get("agreement", "")
    site = OwnSite.of_environment() if agreement else None
    data = site.data(experiment, agreement) if site is not None else None
    space = Workspace.load(experiment, clients=1, data=data)
    _prepared = order["run"], agreement, space
    _practise(space)


def _practise(space: Workspace) -> None:
    """Train and evaluate on two examples: first use of Lightning and PyTorch is slow.

    Only without a GPU: a process that forks must not use one before.
    """
    if torch.cuda.is_available():
        return
    dataset = space.data.dataset
    batches = Batches(
        dataset.x_train,
        dataset.y_train,
        space.data.partitions[space.data.held[0]][:2],
        2,
        lambda: seeds.rng(0, "practice"),
        prepared=space.prepared,
    )
    job, state = Job(space.data.held[0], batches, seed=int, round=1), space.initial_state()
    with contextlib.suppress(Exception):  # the first message reports the error
        list(space.engine.fit(state, [job], Terms()))
        if space.can_evaluate_clients:
            list(space.engine.evaluate(state, [job]))


def tell_killed(killed: Killed) -> None:
    """Report that a message's process was killed before it replied."""
    if killed.command != CLIENT_APP:
        return
    print(f"flsim: a message's process was {killed.end}", file=sys.stderr, flush=True)
    keep_trouble(f"the process of its message was {killed.end}")
    _send(REPORTS, {"killed": True})


def _workspace(context: Context) -> Workspace:
    threads.release()
    check_sources(context.run_config)
    if _prepared is not None and _prepared[0] == context.run_id:
        return _prepared[2]
    experiment = unflatten(context.run_config)
    _prepare_for(experiment, context.run_id)
    return Workspace.load(experiment, clients=1)


class _Site(OwnSite):
    """The client's site, with a workspace."""

    def workspace(self, context: Context, agreement: str) -> Workspace:
        """The workspace with the site's data; the next processes have it from the start."""
        threads.release()
        check_sources(context.run_config)
        if _prepared is not None and _prepared[:2] == (context.run_id, agreement):
            return _prepared[2]
        experiment = unflatten(context.run_config)
        order = {"run": context.run_id, "experiment": flatten(experiment), "agreement": agreement}
        _send(WARM, {"prepare": order})
        return Workspace.load(experiment, clients=1, data=self.data(experiment, agreement))


def _begin(partition: int) -> None:
    """Report the partition of a message: if its process is killed, it is not reported otherwise."""
    _send(REPORTS, {"partition": partition})


def _tell(run: int, batch: Batch, reply: Reply) -> None:
    """Report a batch and its reply to the process that serves the metrics."""
    good = [outcome for outcome in reply.outcomes if outcome.error is None]
    report = {
        "run": run,
        "partition": batch.tasks[0].partition,
        "bytes": {"down": batch_bytes(batch), "up": sum(map(outcome_bytes, good))},
        "metrics": {
            "train" if outcome.phase == "train" else "evaluate": outcome.metrics
            for outcome in good
            if outcome.phase not in UNSEEN
        },
    }
    _send(REPORTS, report)


def _send(variable: str, content: Any) -> None:
    """Send to a socket of this container, if there is one; training does not depend on it."""
    if path := os.environ.get(variable):
        with contextlib.suppress(OSError):
            sockets.send(path, content)


def _announce(experiment: Experiment, run: int) -> str:
    """Report that the run has begun, and load its data and model for the next processes.

    Returns what went wrong before.
    """
    _send(REPORTS, {"run": run})
    _prepare_for(experiment, run)
    return take_trouble()


def _prepare_for(experiment: Experiment, run: int) -> None:
    if experiment.data.of_sites:  # whose form is not agreed yet
        return
    if _prepared is None or _prepared[0] != run:
        _send(WARM, {"prepare": {"run": run, "experiment": flatten(experiment)}})


app = make_client_app(_workspace, _tell, _announce, _begin, _Site.of_environment())
"""The ClientApp of the submitted Flower app."""
