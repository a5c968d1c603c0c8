"""``flsim run``: runs or resumes an experiment, shows its progress, and prints the summary."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from flsimulation import runner
from flsimulation.cli.view import LiveView, PlainView
from flsimulation.events import Sink
from flsimulation.experiment import Experiment, load_experiment
from flsimulation.experiment.own_train import VARIABLE
from flsimulation.host.warned import collected
from flsimulation.rundir import RunRecord
from flsimulation.rundir.reader import report_of
from flsimulation.runtimes import resume_hint


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
    columns: list[str],
) -> None:
    """Run or resume; print the JSON object, the summary, or nothing."""
    if resume is not None:
        experiment = RunRecord(resume).experiment(runtime)
    else:
        own = os.environ.get(VARIABLE)
        given = [f"train.sites={own}"] if own else []
        experiment = load_experiment(file, [*given, *overrides, *runtime])
    console = RunConsole(quiet=json or quiet)
    folders = [resume] if resume is not None else []
    with contextlib.ExitStack() as stack:
        sinks = stack.enter_context(_metrics(experiment, port))
        stack.callback(_say_where, console, folders, experiment)
        stack.enter_context(_warnings(console, on_stderr=json))
        if not console.quiet:
            sinks.append(stack.enter_context(view_of(console, experiment, columns)))
        if resume is not None:
            result = runner.resume(resume, sinks, experiment)
        else:
            result = runner.run(experiment, out, sinks, folders.append)
    if json:
        typer.echo(result.json())
    if result.state == "degraded":
        raise typer.Exit(DEGRADED)


DEGRADED = 3
"""Exit status of a run in which a client never succeeded."""


def _say_where(console: Console, folders: list[Path], experiment: Experiment) -> None:
    """Print where the report is, if readable here, and after Ctrl-C how to resume the run.

    After any other error, the error message itself says how.
    """
    stopped = isinstance(sys.exc_info()[1], KeyboardInterrupt)
    for folder in folders:
        lines = []
        if (report := report_of(folder)) is not None:
            lines.append(f"Report  {report}")
        if stopped and (command := resume_hint(experiment, folder)) is not None:
            lines.append(f"Resume  {command}")
        if lines:
            console.print("\n" + "\n".join(lines), soft_wrap=True, highlight=False, markup=False)


@contextlib.contextmanager
def _warnings(console: Console, *, on_stderr: bool) -> Iterator[None]:
    """Print the libraries' warnings of the block after it, each once."""
    with collected() as found:
        try:
            yield
        finally:
            if found.lines and on_stderr:
                print(*found.lines, sep="\n", file=sys.stderr)
            elif found.lines:
                text = "\n".join(["", *found.lines])
                console.print(Text(text, style="yellow"), soft_wrap=True)


class RunConsole(Console):
    """A console whose reader may close the pipe, as ``| head`` does, without ending the run."""

    def on_broken_pipe(self) -> None:
        """Print nothing any more."""
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


def view_of(
    console: Console, experiment: Experiment, columns: Sequence[str] = ()
) -> LiveView | PlainView:
    """The view of a run: lines, and on a terminal a progress bar below them."""
    kind = LiveView if console.is_terminal else PlainView
    return kind(console, experiment, columns)
