"""``flsim run``: the run, what is shown of it, and the summary."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console

from flsimulation.cli.view import LiveView, PlainView
from flsimulation.errors import InputError
from flsimulation.events import Sink
from flsimulation.experiment import Experiment, load_experiment


def run_command(
    file: Path | None,
    overrides: list[str],
    out: Path | None,
    resume: Path | None,
    *,
    json: bool,
    quiet: bool,
    port: int | None,
) -> None:
    """Run or resume; print the JSON object, the summary, or nothing."""
    if resume is not None:
        if not (resume / "experiment.toml").is_file():
            raise InputError(f"--resume {resume}: is no run directory; it has no experiment.toml")
        experiment = load_experiment(resume / "experiment.toml")
    else:
        experiment = load_experiment(file, overrides)
    console = _Console()
    with contextlib.ExitStack() as stack:
        sinks = stack.enter_context(_metrics(experiment, port))
        if not (json or quiet):
            sinks.append(stack.enter_context(_view(console, experiment)))
        from flsimulation import runner  # Lightning: seconds, so after all cheap checks

        if resume is not None:
            result = runner.resume(resume, sinks)
        else:
            result = runner.run(experiment, out, sinks)
    if json:
        typer.echo(result.json())
    elif not quiet:
        console.print(
            f"\nReport  {Path(result.run_dir) / 'report.html'}", soft_wrap=True, highlight=False
        )


class _Console(Console):
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
    from flsimulation.telemetry.exporter import served
    from flsimulation.telemetry.metrics import PrometheusMetrics

    metrics = PrometheusMetrics(experiment.data.clients)
    with served(metrics.registry, port):
        yield [metrics]


def _view(console: Console, experiment: Experiment) -> LiveView | PlainView:
    return LiveView(console, experiment) if console.is_terminal else PlainView(console, experiment)
