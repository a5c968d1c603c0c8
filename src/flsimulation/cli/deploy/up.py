"""``flsim up`` and ``down``: start the network in containers, run an experiment, stop it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from flsimulation.cli.deploy.compose import (
    EXPERIMENTS,
    RUNS,
    SITES_FILE,
    Project,
    find_files,
    open_project,
)
from flsimulation.cli.deploy.docker import ask
from flsimulation.cli.deploy.doctor import memory, memory_check, ready
from flsimulation.cli.deploy.sites import revoke_sites, with_sites
from flsimulation.cli.deploy.status import address_lines
from flsimulation.errors import InputError, RunError
from flsimulation.rundir.reader import report_of

STANDING = ("superlink", "client", "prometheus", "grafana")
"""The long-running services; ``run`` is started for each experiment."""

_PASSWORD = "grafana-password"  # noqa: S105 - the service that creates it
_SHOW_PASSWORD = "docker compose exec grafana cat /secret/admin-password"  # noqa: S105 - how to see it
_CAN_BE_LEFT_OUT = ("prometheus", "grafana")


def up_command(
    file: Path | None,
    experiment: Path | None,
    clients: int | None,
    without: list[str],
    *,
    run: bool,
    build: bool,
    sites: Path | None = None,
) -> None:
    """Check the machine, build the image, start the services, print the addresses, run."""
    wanted = _wanted(without)
    files = with_sites(find_files(file), experiment, sites)
    project = _project(files, experiment, clients)
    fitting = memory_check(memory(ready(project)), project.clients)
    if fitting.level == "bad" and clients is None:
        raise RunError(fitting.text)
    if fitting.level == "bad":
        typer.echo(
            f"flsim: {fitting.text}", err=True
        )  # only a warning: the number was given explicitly
    if run:
        _refuse_second_run(project)
    wanted = _with_images(project, _there(project, wanted))
    if (runs := project.mount(RUNS)) is not None:
        runs.mkdir(
            parents=True, exist_ok=True
        )  # owned by this user; Docker would create it as root
    if build and project.show("build", *wanted, *["run"] * run):
        raise RunError("the image could not be built; see the lines above")
    project.show("up", "--detach", *wanted, explain=True)
    for line in address_lines(project, project.containers()):
        typer.echo(line)
    if "grafana" in wanted and _PASSWORD in project.services:
        typer.echo(f"{'Password':<12}{_SHOW_PASSWORD}")
    if run:
        _run(project)
    else:
        typer.echo("started; flsim up FILE runs an experiment, flsim down stops the network")


def down_command(file: Path | None, *, volumes: bool) -> None:
    """Stop and remove everything that the project started."""
    project = open_project(find_files(file))
    if project.show("down", "--remove-orphans", *["--volumes"] * volumes, explain=True):
        return
    if volumes:
        revoke_sites(project)
    (project.folder / SITES_FILE).unlink(missing_ok=True)


def _wanted(without: list[str]) -> list[str]:
    for service in without:
        if service not in _CAN_BE_LEFT_OUT:
            raise InputError(
                f"--without {service}: only {' and '.join(_CAN_BE_LEFT_OUT)} can be omitted"
            )
    left_out = {
        *without,
        *["grafana"] * ("prometheus" in without),
    }  # Grafana shows Prometheus's data
    return [service for service in STANDING if service not in left_out]


def _there(project: Project, wanted: list[str]) -> list[str]:
    """The wanted services that the project has, and client services that an override file adds."""
    added = [
        name
        for name in project.client_services
        if name not in wanted and not project.services[name].get("profiles")
    ]
    return [service for service in wanted if service in project.services] + added


def _project(files: tuple[Path, ...], experiment: Path | None, clients: int | None) -> Project:
    """The project, with the number of clients and the experiment's path in place of .env's."""
    settings = {}
    if experiment is not None:
        from flsimulation.experiment import load_experiment

        spec = load_experiment(
            experiment
        )  # an error is reported now, not after minutes of building
        settings["CLIENTS"] = str(spec.data.clients)
    if clients is not None:
        settings["CLIENTS"] = str(clients)
    project = open_project(files, settings)
    if experiment is None:
        return project
    return replace(project, environment={**settings, "EXPERIMENT": _inside(project, experiment)})


def _inside(project: Project, experiment: Path) -> str:
    """The path of an experiment file inside the containers."""
    path, seen = experiment.resolve(), project.mount(EXPERIMENTS)
    if seen is None:
        raise InputError(f"{experiment}: no folder of experiments is mounted in the containers")
    if not path.is_relative_to(seen.resolve()):
        raise InputError(
            f"{experiment}: the containers can only read {seen}; copy the file there, with the files "
            f"that it refers to"
        )
    return f"experiments/{path.relative_to(seen.resolve()).as_posix()}"


def _refuse_second_run(project: Project) -> None:
    """Raise if a run is in progress. The SuperLink is queried: a detached run has no container."""
    running = {row["Service"] for row in project.containers() if row["State"] == "running"}
    if "superlink" not in running:
        return
    from flsimulation.cli.deploy.runs import going_run

    if (run := going_run(project)) is not None:
        raise RunError(
            f"a run is in progress ({run.name or run.id}, {run.progress}); "
            "flsim attach follows it, flsim stop ends it"
        )


def _with_images(project: Project, wanted: list[str]) -> list[str]:
    """Pull the images that are not built here; if Grafana's is not available, leave Grafana out."""
    there = []
    for service in wanted:
        image = project.services[service].get("image", "")
        try:
            if "build" not in project.services[service]:
                _fetch(project, service, image)
        except RunError as error:
            if service != "grafana":
                raise RunError(f"{service} ({image}): {error}") from None
            typer.echo(f"flsim: continuing without grafana ({image}): {error}", err=True)
        else:
            there.append(service)
    return there


def _fetch(project: Project, service: str, image: str) -> None:
    try:
        ask("image", "inspect", "--format", "{{.Id}}", image)
    except RunError:
        typer.echo(f"pulling {image} ...")
        project.ask("pull", "--quiet", service, seconds=None)


def _run(project: Project) -> None:
    """Run the experiment in the foreground and exit with its status."""
    before = _directories(project)
    try:
        status = project.show(
            "up", "--no-deps", "--no-log-prefix", "--force-recreate", "--exit-code-from", "run", "run"
        )  # fmt: skip
    finally:
        for folder in sorted(_directories(project) - before):
            if (report := report_of(folder)) is not None:
                typer.echo(f"Report      {report}")
        typer.echo(
            "the network keeps running; flsim up FILE runs another experiment, flsim down stops it"
        )
    if status:
        raise typer.Exit(status)


def _directories(project: Project) -> set[Path]:
    runs = project.mount(RUNS)
    return set(runs.iterdir()) if runs is not None and runs.is_dir() else set()
