"""The network's verbs: one client or SuperLink, and the whole of it in containers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flsimulation.cli.options import Json, Quiet

MetricsPort = Annotated[
    int, typer.Option(min=1, max=65535, help="Serve Prometheus metrics on this port.")
]
ComposeFile = Annotated[
    Path | None,
    typer.Option("--file", help="The Compose file. [default: compose.yaml here or above]"),
]
SuperLink = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        envvar="SUPERLINK",
        help="The SuperLink. [default: the one of the Compose project here or above, else "
        "127.0.0.1:8080]",
    ),
]
Run = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="The run's id, the beginning of it, or its run directory."
    ),
]


verbs = typer.Typer()
"""The network's commands; ``flsim`` has them beside its own."""


@verbs.command()
def client(
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", envvar="SUPERLINK", help="The SuperLink to join.")
    ] = "127.0.0.1:8080",
    name: Annotated[
        str | None,
        typer.Option(
            help="By which the server knows this client again. [default: the host's name]"
        ),
    ] = None,
    partition: Annotated[
        int | None,
        typer.Option(
            min=0, envvar="PARTITION", help="The partition to hold. [default: the server gives one]"
        ),
    ] = None,
    metrics_port: MetricsPort = 8000,
) -> None:
    """Run one client of a network until it is stopped."""
    from flsimulation.node.node import run_client

    run_client(superlink, name, partition, metrics_port)


@verbs.command()
def superlink(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8080,
    memory: Annotated[
        Path | None,
        typer.Option(
            help="Where to remember who holds which partition. [default: runs/.partitions.json]"
        ),
    ] = None,
    metrics_port: MetricsPort = 8000,
    as_owner_of: Annotated[
        Path | None,
        typer.Option(help="If started as root: go on as the user who owns this folder."),
    ] = None,
) -> None:
    """Run a network's SuperLink and its runs until it is stopped; run directories go to ./runs."""
    from flsimulation.node.node import become_owner_of, run_superlink

    if as_owner_of is not None:
        become_owner_of(as_owner_of)
    run_superlink(host, port, memory or Path("runs") / ".partitions.json", metrics_port)


@verbs.command()
def up(
    experiment: Annotated[Path | None, typer.Argument(metavar="[FILE]")] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="Number of clients; else as in FILE.")
    ] = None,
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Only start the services; run nothing yet.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVICE", help="Leave out grafana, or prometheus and grafana."),
    ] = None,
    no_build: Annotated[
        bool, typer.Option("--no-build", help="Take the image as it is; build nothing.")
    ] = False,
    file: ComposeFile = None,
) -> None:
    """Start the network and run an experiment on it.

    FILE is an experiment file in experiments/; without it the default experiment runs.
    """
    from flsimulation.cli.deploy.up import up_command

    up_command(file, experiment, clients, without or [], run=not no_run, build=not no_build)


@verbs.command()
def down(
    volumes: Annotated[
        bool,
        typer.Option("--volumes", "-v", help="Also forget what Prometheus and Grafana stored."),
    ] = False,
    file: ComposeFile = None,
) -> None:
    """Stop the network; the results in runs/ stay."""
    from flsimulation.cli.deploy.up import down_command

    down_command(file, volumes=volumes)


@verbs.command()
def status(file: ComposeFile = None) -> None:
    """Show the network: containers, run, addresses."""
    from flsimulation.cli.deploy.status import status_command

    status_command(file)


@verbs.command()
def runs(
    superlink: SuperLink = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the runs of a SuperLink since it started, the newest first."""
    from flsimulation.cli.deploy.runs import runs_command

    runs_command(superlink, limit, json=json)


@verbs.command()
def attach(
    run: Run = None,
    superlink: SuperLink = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Follow a run of a network from its beginning, and end with its status.

    Without RUN it is the one in progress. Ctrl-C leaves the run in progress.
    """
    from flsimulation.cli.deploy.runs import attach_command

    attach_command(superlink, run, json=json, quiet=quiet)


@verbs.command()
def stop(run: Run = None, superlink: SuperLink = None) -> None:
    """End a run of a network in order, so that it can be resumed.

    Without RUN it is the one in progress.
    """
    from flsimulation.cli.deploy.runs import stop_command

    stop_command(superlink, run)


@verbs.command()
def logs(
    services: Annotated[list[str] | None, typer.Argument(metavar="[SERVICE]...")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what comes, too; Ctrl-C ends it.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Keep the events of a run as they are, in JSON.")
    ] = False,
    file: ComposeFile = None,
) -> None:
    """Show what the services print.

    SERVICE is superlink, client, run, prometheus, grafana or grafana-password (which printed
    the password when it was made); without it all are shown.
    """
    from flsimulation.cli.deploy.logs import logs_command

    logs_command(file, services or [], follow=follow, raw=raw)


@verbs.command()
def doctor(
    clients: Annotated[
        int | None, typer.Option(min=1, help="Number of clients; else as in compose.yaml.")
    ] = None,
    file: ComposeFile = None,
) -> None:
    """Check this machine, and say what to do."""
    from flsimulation.cli.deploy.doctor import doctor_command

    doctor_command(file, clients)
