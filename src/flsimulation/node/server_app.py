"""The ServerApp that a network's SuperLink runs: runs a federation and writes its run directory."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from flsimulation.client.workspace import Workspace
from flsimulation.clock import Clock
from flsimulation.errors import (
    FLSimulationError,
    InputError,
    Interrupted,
    RunError,
    describe_error,
)
from flsimulation.events import Event, RunFinished, Sink
from flsimulation.experiment import Experiment, unflatten
from flsimulation.experiment.sources import check_sources
from flsimulation.experiment.strategy import quiet_flower
from flsimulation.host.processes import alone
from flsimulation.host.usage import peak_memory_bytes
from flsimulation.internals.flower_words import SERVER_APP
from flsimulation.node import ends, sockets, task, threads
from flsimulation.node.admission import register_beside
from flsimulation.node.flower_patches import LogWatch
from flsimulation.node.grid import connect
from flsimulation.node.identified import Names
from flsimulation.node.launches import Killed
from flsimulation.node.sited import Sited, agreed_sites, keep_agreement, kept_agreement
from flsimulation.rundir import RunRecord
from flsimulation.rundir.storage import storing
from flsimulation.runtimes.network import lines
from flsimulation.runtimes.network.events import to_json
from flsimulation.runtimes.network.names import MEMORY, MODELS, OUT, REPORTS, RESUME
from flsimulation.runtimes.recorded import record_resumed, record_run
from flsimulation.security.home import is_insecure
from flsimulation.server.app import Start, make_server_app
from flsimulation.server.grid import PartitionedGrid

_ENDING_SECONDS = 10.0  # that a stopped run may take to end before the next one begins
_LOOK_SECONDS = 0.1
_UPLOADED_SECONDS = 30.0  # that the last lines of a run may take to reach the SuperLink

log = LogWatch()
"""Of the runs whose processes are forked from this one."""
app = ServerApp()
"""The ServerApp of the submitted Flower app."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run config; write its run directory on this machine."""
    threads.release()
    config = context.run_config
    out, resumed = (str(config.get(key, "")) for key in (OUT, RESUME))
    models = bool(config.get(MODELS, False))
    memory = Path(path) if (path := os.environ.get(MEMORY)) else None

    try:
        with ends.in_order(), _alone(memory):
            _run(out, resumed, models, memory, grid, context)
    except Interrupted as end:
        message = f"the run was interrupted: {end}"
        lines.tell_error(message, input=False)
        raise RunError(message) from None  # Flower reports it as failed
    except Exception:
        log.wait(_UPLOADED_SECONDS)
        raise
    log.wait(_UPLOADED_SECONDS)


@contextlib.contextmanager
def _alone(memory: Path | None) -> Iterator[None]:
    """Refuse a second run of this SuperLink, which would share its clients and its metrics."""
    if memory is None:
        yield
        return
    until, lock = time.monotonic() + _ENDING_SECONDS, memory.with_suffix(".lock")
    with contextlib.ExitStack() as stack:
        try:
            while not stack.enter_context(alone(lock)):
                if time.monotonic() > until:
                    raise RunError(
                        "another run is in progress here; flsim attach follows it, "
                        "flsim stop ends it"
                    )
                time.sleep(_LOOK_SECONDS)
        except (OSError, RunError) as error:
            is_full = isinstance(error, OSError)
            text = f"{lock}: cannot be written: {error}" if is_full else str(error)
            lines.tell_error(text, input=False)
            raise RunError(text) from None
        yield


def _run(
    out: str, resumed: str, models: bool, memory: Path | None, grid: Grid, context: Context
) -> None:
    def federate(
        _: Experiment, sinks: Iterable[Sink], space: Workspace | None, start: Start | None
    ) -> None:
        with quiet_flower():
            connected = partial(connect, memory=memory, names=_names(memory))
            join = joined if sited is not None else connected
            make_server_app(sinks, space, start, join)(grid, context)

    sited: Sited | None = None

    def joined(_: Grid, __: Experiment, emit: Sink, ___: Clock) -> PartitionedGrid:
        """The grid whose clients are there already, because they agreed before."""
        assert sited is not None  # noqa: S101 - where this is called
        return sited.continued(emit)

    sinks: list[Sink] = [_tell, *([lines.tell_model] if models else [])]

    def opened(path: str | Path) -> None:
        ends.remember(memory, str(path))
        lines.tell_opened(str(path))
        if sited is not None and experiment.round.late == "join":
            with storing(Path(path)):
                keep_agreement(Path(path), sited)

    try:
        if resumed:
            opened(resumed)
            experiment = RunRecord(resumed).experiment()
        else:
            experiment = unflatten(context.run_config)
        check_sources(context.run_config)
        if experiment.data.of_sites:
            before = kept_agreement(Path(resumed)) if resumed else None
            names = _names(memory)
            sited = agreed_sites(grid, experiment, _tell, memory, names, before=before)
        data = sited.data if sited is not None else None
        if resumed:
            result = record_resumed(resumed, experiment, federate, sinks, clients=0, data=data)
        else:
            result = record_run(
                experiment, federate, out or None, sinks, opened, clients=0, data=data
            )
    except FLSimulationError as error:
        lines.tell_error(str(error), input=isinstance(error, InputError))
        raise
    except Exception as error:
        lines.tell_error(describe_error(error), input=False)
        raise
    lines.tell_result(asdict(result))


def _names(memory: Path | None) -> Names | None:
    """The names of the admitted nodes; None without node identity."""
    return None if memory is None or is_insecure() else register_beside(memory).names


def _tell(event: Event) -> None:
    """Send an event to the command that follows the run and to the metrics, in other processes."""
    if isinstance(event, RunFinished):
        event = replace(event, peak_memory_bytes=peak_memory_bytes())
    lines.tell(event)
    _report(event)


def tell_killed(killed: Killed) -> None:
    """Write and report the end of a run whose process was killed."""
    if killed.command != SERVER_APP:
        return
    cause = f"the run's process was {killed.end}"
    print(f"flsim: {cause}", file=sys.stderr, flush=True)
    memory = Path(path) if (path := os.environ.get(MEMORY)) else None
    run = ends.settle_run(memory, "failed", cause)
    rounds, seconds = ends.progress(run[1]) if run is not None else (0, 0.0)
    end = RunFinished("failed", rounds, seconds, cause, killed.peak_memory_bytes)
    _report(end)
    task.fail(killed.arguments, [lines.of(end), lines.of_error(cause, input=False)], cause)


def _report(event: Event) -> None:
    """Send an event to the process that serves the metrics; errors do not affect the run."""
    path, line = os.environ.get(REPORTS), to_json(event)
    if path and line is not None:
        with contextlib.suppress(OSError):
            sockets.send(path, line)
