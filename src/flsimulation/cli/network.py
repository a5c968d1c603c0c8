"""The network's verbs: one client or SuperLink, and the whole of it in containers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flsimulation.errors import InputError, RunError

if TYPE_CHECKING:
    from flsimulation.cli.compose import Project

STANDING = ("superlink", "client", "prometheus", "grafana")
"""The services that stay; ``run`` comes and goes with each experiment."""

_PASSWORD = "grafana-password"  # noqa: S105 - the service that makes it
_CAN_BE_LEFT_OUT = ("prometheus", "grafana")

ComposeFile = Annotated[
    Path | None,
    typer.Option("--file", help="The Compose file. [default: compose.yaml here or above]"),
]
Clients = Annotated[
    int | None, typer.Option(min=1, help="Number of clients; else as in compose.yaml.")
]


def register(app: typer.Typer) -> None:
    """Add the network's verbs to the command."""
    for verb in (client, superlink, up, down, status, logs, doctor):
        app.command()(verb)


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
    metrics_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Serve Prometheus metrics on this port.")
    ] = 8000,
) -> None:
    """Run one client of a network until it is stopped."""
    from flsimulation.network.node import run_client

    run_client(superlink, name, partition, metrics_port)


def superlink(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8080,
    memory: Annotated[
        Path | None,
        typer.Option(
            help="Where to remember who holds which partition. [default: runs/.partitions.json]"
        ),
    ] = None,
    metrics_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Serve Prometheus metrics on this port.")
    ] = 8000,
    as_owner_of: Annotated[
        Path | None,
        typer.Option(help="If started as root: go on as the user who owns this folder."),
    ] = None,
) -> None:
    """Run a network's SuperLink and its runs until it is stopped; run directories go to ./runs."""
    from flsimulation.network.node import become_owner_of, run_superlink

    if as_owner_of is not None:
        become_owner_of(as_owner_of)
    run_superlink(host, port, memory or Path("runs") / ".partitions.json", metrics_port)


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
    up_command(file, experiment, clients, without or [], run=not no_run, build=not no_build)


def down(
    volumes: Annotated[
        bool,
        typer.Option("--volumes", "-v", help="Also forget what Prometheus and Grafana stored."),
    ] = False,
    file: ComposeFile = None,
) -> None:
    """Stop the network; the results in runs/ stay."""
    down_command(file, volumes=volumes)


def status(file: ComposeFile = None) -> None:
    """Show the network: containers, run, addresses."""
    from flsimulation.cli.status import status_command

    status_command(file)


def logs(
    services: Annotated[list[str] | None, typer.Argument(metavar="[SERVICE]...")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes; Ctrl-C ends it.")
    ] = False,
    file: ComposeFile = None,
) -> None:
    """Show what the services print.

    SERVICE is superlink, client, run, prometheus, grafana or grafana-password (which printed
    the password when it was made); without it all are shown.
    """
    logs_command(file, services or [], follow=follow)


def doctor(clients: Clients = None, file: ComposeFile = None) -> None:
    """Check this machine, and say what to do."""
    from flsimulation.cli.doctor import doctor_command

    doctor_command(file, clients)


def up_command(
    file: Path | None,
    experiment: Path | None,
    clients: int | None,
    without: list[str],
    *,
    run: bool,
    build: bool,
) -> None:
    """Check, build, start what stands, say where to look, run."""
    from flsimulation.cli.compose import find_files, open_project
    from flsimulation.cli.doctor import memory, memory_check, ready
    from flsimulation.cli.status import address_lines

    files = find_files(file)
    wanted = _wanted(without)
    environment = _settings(experiment, clients, files[0].parent)
    project = open_project(files, environment)
    fitting = memory_check(memory(ready(project)), project.clients)
    if fitting.level == "bad" and clients is None:
        raise RunError(fitting.text)
    if fitting.level == "bad":
        typer.echo(f"flsim: {fitting.text}", err=True)  # their own number: they may know better
    if run:
        _refuse_second_run(project)
    wanted = _with_images(project, [service for service in wanted if service in project.services])
    (project.folder / "runs").mkdir(exist_ok=True)  # ours; Docker would make it root's
    if build and project.show("build", *wanted, *["run"] * run):
        raise RunError("the image could not be built; the lines above say why")
    project.show("up", "--detach", *wanted, explain=True)
    for line in address_lines(project, project.containers()):
        typer.echo(line)
    if "grafana" in wanted and _PASSWORD in project.services:  # it was printed when it was made
        typer.echo(project.ask("logs", "--no-log-prefix", _PASSWORD), nl=False)
    if run:
        _run(project)
    else:
        typer.echo("started; flsim up FILE runs an experiment, flsim down ends it")


def down_command(file: Path | None, *, volumes: bool) -> None:
    """Stop and remove everything that the project started."""
    from flsimulation.cli.compose import find_files, open_project

    project = open_project(find_files(file))
    project.show("down", "--remove-orphans", *["--volumes"] * volumes, explain=True)


def logs_command(file: Path | None, services: list[str], *, follow: bool) -> None:
    """Show the logs of some services, or of all."""
    from flsimulation.cli.compose import find_files, open_project

    project = open_project(find_files(file))
    for service in services:
        if service not in project.services:
            raise InputError(f"no service {service!r}; there are {', '.join(project.services)}")
    project.show("logs", *["--follow"] * follow, *services, explain=True)


def _wanted(without: list[str]) -> list[str]:
    for service in without:
        if service not in _CAN_BE_LEFT_OUT:
            raise InputError(
                f"--without {service}: only {' and '.join(_CAN_BE_LEFT_OUT)} can be left out"
            )
    left_out = {*without, *["grafana"] * ("prometheus" in without)}  # it shows what that stores
    return [service for service in STANDING if service not in left_out]


def _settings(experiment: Path | None, clients: int | None, folder: Path) -> dict[str, str]:
    """What is set over .env: the experiment as the containers know it, and its clients."""
    settings = {}
    if experiment is not None:
        from flsimulation.experiment import load_experiment

        spec = load_experiment(experiment)  # a mistake is told now, not after minutes of building
        path, seen = experiment.resolve(), folder.resolve() / "experiments"
        if not path.is_relative_to(seen):
            raise InputError(
                f"{experiment}: the containers see {seen} only; "
                "copy the file there, with what it names"
            )
        inside = f"experiments/{path.relative_to(seen).as_posix()}"
        settings = {"EXPERIMENT": inside, "CLIENTS": str(spec.data.clients)}
    if clients is not None:
        settings["CLIENTS"] = str(clients)
    return settings


def _refuse_second_run(project: Project) -> None:
    for row in project.containers():
        if row["Service"] == "run" and row["State"] == "running":
            raise RunError(
                f"a run goes on in {row['Name']}; flsim logs --follow run follows it, "
                "flsim down ends everything"
            )


def _with_images(project: Project, wanted: list[str]) -> list[str]:
    """Fetch the images that are not built here; without Grafana's, go on without Grafana."""
    there = []
    for service in wanted:
        image = project.services[service].get("image", "")
        try:
            if "build" not in project.services[service]:
                _fetch(project, service, image)
        except RunError as error:
            if service != "grafana":
                raise RunError(f"{service} ({image}): {error}") from None
            typer.echo(f"flsim: going on without grafana ({image}): {error}", err=True)
        else:
            there.append(service)
    return there


def _fetch(project: Project, service: str, image: str) -> None:
    from flsimulation.cli.compose import ask

    try:
        ask("image", "inspect", "--format", "{{.Id}}", image)
    except RunError:
        typer.echo(f"fetching {image} ...")
        project.ask("pull", "--quiet", service, seconds=None)


def _run(project: Project) -> None:
    """Run the experiment in the foreground and end with its status."""
    runs = project.folder / "runs"
    before = set(runs.iterdir())
    try:
        status = project.show(
            "up", "--no-deps", "--no-log-prefix", "--force-recreate", "--exit-code-from", "run", "run"
        )  # fmt: skip
    finally:
        for folder in sorted(set(runs.iterdir()) - before):
            if (folder / "report.html").is_file():
                typer.echo(f"Report      {folder / 'report.html'}")
        typer.echo("the network goes on; flsim up FILE runs another experiment, flsim down ends it")
    if status:
        raise typer.Exit(status)
