"""``flsim run``: the run, what is shown of it, and the summary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console

from flsimulation.cli.view import LiveView, PlainView
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
        experiment = load_experiment(resume / "experiment.toml")
    else:
        experiment = load_experiment(file, overrides)
    console = Console()
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
