"""The network's verbs: the whole network in containers, its runs, and this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flsimulation.cli.deploy import access, programs
from flsimulation.cli.options import Columns, Json, Overrides, Quiet, listed
from flsimulation.errors import InputError

ComposeFile = Annotated[
    Path | None,
    typer.Option(
        "--file", help="The Compose file. [default: compose.yaml here or in a folder above]"
    ),
]
SuperLink = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        envvar="SUPERLINK",
        help="The SuperLink. [default: that of the Compose project here or in a folder above, "
        "else 127.0.0.1:8080]",
    ),
]
Run = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="The run's id, a prefix of it, or its run directory."),
]


verbs = typer.Typer()
"""The network's commands; ``flsim`` has them beside its own."""
verbs.add_typer(programs.verbs)
verbs.add_typer(access.verbs)


@verbs.command()
def up(
    experiment: Annotated[Path | None, typer.Argument(metavar="[FILE]")] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="Number of clients. [default: as in FILE]")
    ] = None,
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Only start the services, without a run.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVICE", help="Omit grafana, or prometheus with grafana."),
    ] = None,
    no_build: Annotated[
        bool, typer.Option("--no-build", help="Use the existing image; do not build it.")
    ] = False,
    sites: Annotated[
        Path | None,
        typer.Option(
            help="Describes the containers of an experiment's sites. [default: sites.toml beside FILE]"
        ),
    ] = None,
    file: ComposeFile = None,
) -> None:
    """Start the network and run an experiment on it.

    FILE is an experiment file in experiments/; without it, the default experiment runs.
    """
    from flsimulation.cli.deploy.up import up_command

    up_command(
        *(file, experiment, clients, without or []),
        run=not no_run,
        build=not no_build,
        sites=sites,
    )


@verbs.command()
def down(
    volumes: Annotated[
        bool,
        typer.Option(
            "--volumes",
            "-v",
            help="Also delete the certificates, and the data of Prometheus and Grafana.",
        ),
    ] = False,
    file: ComposeFile = None,
) -> None:
    """Stop the network; the results in runs/ are kept."""
    from flsimulation.cli.deploy.up import down_command

    down_command(file, volumes=volumes)


@verbs.command()
def status(
    file: ComposeFile = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="Only the admitted clients of a SuperLink without containers: its runs."),
    ] = None,
) -> None:
    """Show the network: containers, run, addresses, admitted clients with their keys."""
    from flsimulation.cli.deploy.status import status_command

    status_command(file, runs)


@verbs.command()
def runs(
    superlink: SuperLink = None,
    limit: Annotated[int, typer.Option(min=1, help="Most runs to list, the newest first.")] = 20,
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
    columns: Columns = None,
) -> None:
    """Follow a run of a network from its beginning, and exit with its status.

    Without RUN, it is the run in progress. Ctrl-C does not stop the run.
    """
    from flsimulation.cli.deploy.runs import attach_command

    attach_command(superlink, run, listed(columns), json=json, quiet=quiet)


@verbs.command()
def stop(run: Run = None, superlink: SuperLink = None) -> None:
    """Stop a run of a network so that it can be resumed.

    Without RUN, it is the run in progress.
    """
    from flsimulation.cli.deploy.runs import stop_command

    stop_command(superlink, run)


@verbs.command()
def logs(
    services: Annotated[list[str] | None, typer.Argument(metavar="[SERVICE]...")] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Also show new lines as they come; Ctrl-C ends it."),
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Show the events of a run as JSON, unchanged.")
    ] = False,
    file: ComposeFile = None,
) -> None:
    """Show the logs of the services.

    SERVICE is superlink, client, run, prometheus, grafana, certs or grafana-password; without it,
    the logs of all are shown.
    """
    from flsimulation.cli.deploy.logs import logs_command

    logs_command(file, services or [], follow=follow, raw=raw)


@verbs.command()
def doctor(
    experiment: Annotated[Path | None, typer.Argument(metavar="[FILE]", show_default=False)] = None,
    overrides: Overrides = None,
    json: Json = False,
    clients: Annotated[
        int | None, typer.Option(min=1, help="Number of clients. [default: as in compose.yaml]")
    ] = None,
    file: ComposeFile = None,
) -> None:
    """Say what trains an experiment and why not a faster engine; or check this machine.

    FILE is an experiment file: how fast each engine trains it, and what to change. Without it: whether
    this machine can run the network, with the remedies.
    """
    if experiment is not None:
        if clients is not None or file is not None:
            raise InputError("--clients and --file are of the network; drop them, or FILE")
        from flsimulation.cli.engines import engines_command

        engines_command(experiment, overrides or [], as_json=json)
        return
    if overrides or json:
        raise InputError("--set and --json are of an experiment; name its file: flsim doctor FILE")
    from flsimulation.cli.deploy.doctor import doctor_command

    doctor_command(file, clients)
