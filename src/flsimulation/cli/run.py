"""``flsim run``: the run, what is shown of it, and the summary."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from json import dumps as dump_json
from pathlib import Path
from typing import Any, TypeAlias

import typer
from rich.console import Console

from flsimulation.cli.view import LiveView, PlainView
from flsimulation.errors import RunError
from flsimulation.events import Sink
from flsimulation.experiment import Experiment, load_experiment
from flsimulation.host.processes import uncollected
from flsimulation.rundir import RunRecord
from flsimulation.rundir.reader import can_resume, report_of
from flsimulation.runtimes.network.resuming import resume_command


def run_command(
    file: Path | None,
    overrides: list[str],
    out: Path | None,
    resume: Path | None,
    *,
    json: bool,
    quiet: bool,
    port: int | None,
    runtime: list[str],
) -> None:
    """Run or resume; print the JSON object, the summary, or nothing."""
    if resume is not None:
        experiment = RunRecord(resume).experiment(runtime)
    else:
        experiment = load_experiment(file, [*overrides, *runtime])
    console = RunConsole(quiet=json or quiet)
    folders = [resume] if resume is not None else []
    network = experiment.runtime.kind == "network"
    superlink = experiment.runtime.superlink if network else None
    with contextlib.ExitStack() as stack:
        sinks = stack.enter_context(_metrics(experiment, port))
        stack.callback(_say_where, console, folders, superlink, experiment.data.clients)
        if not console.quiet:
            sinks.append(stack.enter_context(view_of(console, experiment)))
        run = _on_network if network else _from_here
        try:
            result = run(experiment, out, resume, sinks, folders.append)
        except RunError as error:
            if network or not (again := [resume_command(f) for f in folders if can_resume(f)]):
                raise
            raise RunError(f"{error}; resume with `{again[0]}`") from error
    if json:
        typer.echo(dump_json(result))
    if result["state"] == "degraded":
        raise typer.Exit(DEGRADED)


DEGRADED = 3
"""Exit status of a run in which a client never succeeded."""
Opened: TypeAlias = Callable[[Path], None]


def _from_here(
    experiment: Experiment, out: Path | None, resume: Path | None, sinks: list[Sink], opened: Opened
) -> dict[str, Any]:
    with uncollected():
        from flsimulation import runner  # Lightning: seconds, so after all cheap checks

    if resume is not None:
        return asdict(runner.resume(resume, sinks, experiment=experiment))
    return asdict(runner.run(experiment, out, sinks, opened))


def _on_network(
    experiment: Experiment, out: Path | None, resume: Path | None, sinks: list[Sink], opened: Opened
) -> dict[str, Any]:
    from flsimulation.runtimes.network.drive import run_on_network

    return run_on_network(experiment, out, sinks, None if resume else opened, resume)


def _say_where(console: Console, folders: list[Path], superlink: str | None, clients: int) -> None:
    """Name the report, if it is here, and after Ctrl-C the way to resume; an error names its own."""
    stopped = isinstance(sys.exc_info()[1], KeyboardInterrupt)
    for folder in folders:
        lines = []
        if (report := report_of(folder)) is not None:
            lines.append(f"Report  {report}")
        if stopped and can_resume(folder):
            lines.append(f"Resume  {resume_command(folder, superlink, clients)}")
        if lines:
            console.print("\n" + "\n".join(lines), soft_wrap=True, highlight=False, markup=False)


class RunConsole(Console):
    """A console whose reader may go away, as ``| head`` does, without an end to the run."""

    def on_broken_pipe(self) -> None:
        """Show nothing from now on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _metrics(experiment: Experiment, port: int | None) -> Iterator[list[Sink]]:
    if port is None:
        yield []
        return
    from flsimulation.metrics.exporter import served
    from flsimulation.metrics.server import PrometheusMetrics

    metrics = PrometheusMetrics(experiment.data.clients)
    with served(metrics.registry, port):
        yield [metrics]


def view_of(console: Console, experiment: Experiment) -> LiveView | PlainView:
    """What shows a run: lines with a bar under them on a terminal, else lines."""
    return LiveView(console, experiment) if console.is_terminal else PlainView(console, experiment)
