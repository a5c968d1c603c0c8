"""The ServerApp that a network's SuperLink runs: the same federation, with its run directory."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from flsimulation import runner
from flsimulation.apps.server_app import Start, make_server_app
from flsimulation.apps.workspace import Workspace
from flsimulation.errors import FLSimulationError, InputError, RunError, describe_error
from flsimulation.events import Event, RunFinished, Sink
from flsimulation.experiment import Experiment, unflatten
from flsimulation.experiment.strategy import quiet_flower
from flsimulation.network import lines, sockets, threads
from flsimulation.network.names import MEMORY, MODELS, OUT, REPORTS, RESUME, SERVER_APP
from flsimulation.processes import alone
from flsimulation.telemetry.wire import to_json

app = ServerApp()
"""The ServerApp that the submitted app names."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run config; write its run directory where this process runs."""
    threads.release()
    config = context.run_config
    out, resumed = (str(config.get(key, "")) for key in (OUT, RESUME))
    models = bool(config.get(MODELS, False))
    memory = Path(path) if (path := os.environ.get(MEMORY)) else None

    with _alone(memory):
        _run(out, resumed, models, memory, grid, context)


@contextlib.contextmanager
def _alone(memory: Path | None) -> Iterator[None]:
    """Keep other runs of this SuperLink out: they would share its clients and its metrics."""
    if memory is None:
        yield
        return
    with alone(memory.with_suffix(".lock")) as here:
        if not here:
            message = "another run goes on here; wait for its end, or stop it"
            lines.tell_error(message, input=False)
            raise RunError(message)
        yield


def _run(
    out: str, resumed: str, models: bool, memory: Path | None, grid: Grid, context: Context
) -> None:
    def federate(
        _: Experiment, sinks: Iterable[Sink], space: Workspace | None, start: Start | None
    ) -> None:
        with quiet_flower():
            make_server_app(sinks, space, start, memory)(grid, context)

    told: list[Sink] = [lines.tell, _report, *([lines.tell_model] if models else [])]
    try:
        if resumed:
            lines.tell_opened(resumed)
            result = runner.resume(resumed, told, federate)
        else:
            experiment = unflatten(context.run_config)
            result = runner.run(
                experiment, out or None, told, lambda path: lines.tell_opened(str(path)), federate
            )
    except FLSimulationError as error:
        lines.tell_error(str(error), input=isinstance(error, InputError))
        raise
    except Exception as error:
        lines.tell_error(describe_error(error), input=False)
        raise
    lines.tell_result(asdict(result))


def tell_killed(command: str, number: int) -> None:
    """Report the end of a run whose process was killed and cannot report it."""
    if command == SERVER_APP:
        name = signal.Signals(number).name
        print(f"flsim: the run's process was ended by {name}", file=sys.stderr, flush=True)
        _report(RunFinished("failed", 0, 0.0, f"its process was ended by {name}"))


def _report(event: Event) -> None:
    """Tell the process that serves the container's metrics; the run does not depend on it."""
    path, line = os.environ.get(REPORTS), to_json(event)
    if path and line is not None:
        with contextlib.suppress(OSError):
            sockets.send(path, line)
