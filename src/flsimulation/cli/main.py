"""The command ``flsim``: verbs to functions. Heavy imports stay inside the verbs."""

from __future__ import annotations

import gc
import io
import signal
import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from flsimulation import __version__
from flsimulation.cli import studies
from flsimulation.cli.deploy import network
from flsimulation.cli.options import Columns, File, Json, Overrides, Quiet, listed
from flsimulation.errors import FLSimulationError, InputError, printable
from flsimulation.internals.slow_imports import defer_slow_imports

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit statuses; 0 is success

app = typer.Typer(
    name="flsim",
    help="Run a federation and watch it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flsim {__version__}")
        raise typer.Exit


@app.callback()
def flsim(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run a federation and watch it."""


@app.command()
def run(
    file: File = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory. [default: runs/<utc-time>-<name>]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Resume the unfinished run in this directory.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    columns: Columns = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Serve Prometheus metrics on this port during the run."
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="inprocess, ray or network. [default: the experiment's runtime.kind]",
        ),
    ] = None,
    superlink: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The SuperLink of a network, as runtime.superlink."),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(min=1, envvar="FLSIM_CLIENTS", help="Number of clients, as data.clients."),
    ] = None,
) -> None:
    """Run an experiment; leave a run directory with the results and a report.

    FILE is an experiment file; without it, the default experiment runs.
    """
    from flsimulation.cli.run import run_command

    chosen = {
        "runtime.kind": runtime,
        "runtime.superlink": superlink,
        "data.clients": clients if resume is None else None,
    }
    if resume is not None and (file is not None or overrides or out is not None):
        raise InputError(
            "--resume takes the experiment and the directory from the run; drop FILE, --set and --out"
        )
    run_command(
        file,
        overrides or [],
        out,
        resume,
        json=json,
        quiet=quiet,
        port=metrics_port,
        runtime=[f"{key}={value}" for key, value in chosen.items() if value is not None],
        columns=listed(columns),
    )


@app.command()
def partition(
    file: File = None,
    overrides: Overrides = None,
    png: Annotated[
        Path | None, typer.Option(help="Where to write the PNG. [default: partition-<name>.png]")
    ] = None,
) -> None:
    """Show how the data is partitioned: a table, and the label histograms as PNG.

    FILE is an experiment file; without it, the default experiment is used.
    """
    from flsimulation.cli.partition import partition_command

    partition_command(file, overrides or [], png)


@app.command()
def data(
    source: Annotated[str | None, typer.Argument(metavar="[FILE]")] = None,
    overrides: Overrides = None,
    png: Annotated[
        Path | None, typer.Option(help="Where to write the PNG. [default: data-<name>.png]")
    ] = None,
    json: Json = False,
) -> None:
    """Show how the data is understood: rows, task, columns or classes, and examples as PNG.

    FILE is an experiment file, or the data itself: a .csv, a .npz, a folder, or what
    data.dataset accepts. Without it, the default experiment is used.
    """
    from flsimulation.cli.data import data_command

    data_command(source, overrides or [], png, as_json=json)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", show_default=False)],
    png: Annotated[bool, typer.Option("--png", help="Also write each plot as PNG.")] = False,
) -> None:
    """Write a run's report again, from the files of its run directory.

    RUN is a run directory.
    """
    from flsimulation.report import write_pngs, write_report

    typer.echo(write_report(run_dir))
    for path in write_pngs(run_dir, run_dir / "plots") if png else []:
        typer.echo(path)


app.add_typer(studies.verbs)
app.add_typer(network.verbs)


def program() -> None:
    """Entry point of the command: runs `main`, and exits without a last garbage collection."""
    defer_slow_imports()
    try:
        main()
    finally:
        gc.freeze()  # Python's last collection would traverse half a million objects


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status; errors are one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal that cannot show a character shows "?"
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = _status(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(status)


def _interrupt(*_: object) -> None:
    """End on SIGTERM, which stopping a container sends, as cleanly as on Ctrl-C."""
    raise KeyboardInterrupt


def _status(arguments: list[str] | None) -> int:
    try:
        status = app(arguments, standalone_mode=False)
    except click.ClickException as error:
        return _complain(error.format_message(), BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader closed the pipe, as `| head` does
        return 0
    except InputError as error:
        return _complain(str(error), BAD_INPUT)
    except FLSimulationError as error:
        notes = getattr(error, "__notes__", [])
        return _complain("; ".join([str(error), *notes]), FAILED)
    except OSError as error:
        return _complain(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), FAILED)
    return status if isinstance(status, int) else 0


def _complain(message: str, status: int) -> int:
    for line in message.splitlines() or [""]:
        print(f"flsim: {printable(line)}", file=sys.stderr)
    return status
