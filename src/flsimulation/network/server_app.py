"""The ServerApp that a network's SuperLink runs: the same federation, with its run directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from flsimulation import runner
from flsimulation.apps.server_app import Start, make_server_app
from flsimulation.apps.workspace import Workspace
from flsimulation.errors import FLSimulationError, InputError, describe_error
from flsimulation.events import Event, Sink
from flsimulation.experiment import Experiment, unflatten
from flsimulation.experiment.strategy import quiet_flower
from flsimulation.network import lines, sockets, threads
from flsimulation.network.names import MEMORY, MODELS, OUT, REPORTS, RESUME
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
            experiment = unflatten(config)
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


def _report(event: Event) -> None:
    """Tell the process that serves the container's metrics; the run does not depend on it."""
    path, line = os.environ.get(REPORTS), to_json(event)
    if path and line is not None:
        with contextlib.suppress(OSError):
            sockets.send(path, line)
