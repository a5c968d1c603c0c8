"""``flsim doctor``: checks whether this machine can run the network, with a remedy if not."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from flsimulation.cli.deploy.compose import (
    EXPERIMENTS,
    FILE_NAME,
    PORTS,
    RUNS,
    Project,
    find_files,
    open_project,
)
from flsimulation.cli.deploy.docker import ask, parsed, version
from flsimulation.cli.deploy.folders import Check, disk_check, readable_checks, runs_check
from flsimulation.cli.deploy.ports import containers_at, listener, taken
from flsimulation.errors import FLSimulationError, InputError, RunError
from flsimulation.host.usage import machine_memory_bytes
from flsimulation.node.health import CLIENT_BYTES

_ENGINE, _COMPOSE = (20, 10), (2, 20)  # oldest versions supported
# Memory per client, and of the other services: memory.max_usage_in_bytes of the containers' control
# groups over four runs of the default experiment was 749 MiB in a client, 883 in the SuperLink, 131
# in Prometheus and 115 in `run`; with ten clients it was not more (docs/network.md). An eighth is
# added.
_CLIENT_BYTES, _REST_BYTES = CLIENT_BYTES + 90 * 2**20, 1300 * 2**20
_IMAGE_BYTES, _RUNS_BYTES = 6 * 10**9, 10**9  # disk: an image of 4 GB and its build; results
_SIGNS = {"good": ("✓", "green"), "warning": ("!", "yellow"), "bad": ("✗", "red")}


def doctor_command(file: Path | None, clients: int | None) -> None:
    """Print a line per check; exit with status 1 if one is bad."""
    console, bad = Console(highlight=False), 0
    for check in checks(file, clients):
        sign, colour = _SIGNS[check.level]
        bad += check.level == "bad"
        console.print(Text.assemble((sign, colour), f" {check.text}"), soft_wrap=True)
    if bad:
        raise typer.Exit(1)


def checks(file: Path | None, clients: int | None) -> Iterator[Check]:
    """All checks, those of this machine's Python first.

    Raises
    ------
    InputError
        If a Compose file is named that does not exist.
    """
    files = _files(file)
    folder = files[0].parent if files else Path.cwd()
    yield from python_checks()
    yield from file_checks(files)
    engine: dict[str, Any] = {}
    project = None
    try:
        engine = engine_facts()
        yield engine_check(engine)
        yield compose_check(ask("compose", "version", "--short"))
        project = open_project(files) if files else None
    except FLSimulationError as error:
        yield Check("bad", str(error))
    yield from port_checks(project, docker=bool(engine))
    if engine:
        yield cgroup_check(engine)
        root = Path(engine.get("DockerRootDir", "/"))
        prune = "docker system prune removes unused images and containers"
        yield disk_check("Docker's images", root, _IMAGE_BYTES, prune)
    if (runs := project.mount(RUNS) if project else folder / "runs") is not None:
        yield disk_check("results", runs, _RUNS_BYTES, "remove old runs")
        yield runs_check(runs)
    experiments = project.mount(EXPERIMENTS) if project else folder / "experiments"
    yield from readable_checks(place for place in (experiments, folder / "monitoring") if place)
    yield memory_check(memory(engine), clients or (project.clients if project else 2))
    if project is not None:
        yield from limit_checks(project)


def _files(file: Path | None) -> tuple[Path, ...]:
    try:
        return find_files(file)
    except InputError:
        if file is not None or os.environ.get("COMPOSE_FILE"):
            raise
        return ()


def ready(project: Project) -> dict[str, Any]:
    """What ``docker info`` reports, after the checks that must pass before a start.

    Raises
    ------
    RunError
        With the text of the first check that is bad.
    """
    engine = engine_facts()
    version_checks = engine_check(engine), compose_check(ask("compose", "version", "--short"))
    for check in (*version_checks, *port_checks(project)):
        if check.level == "bad":
            raise RunError(check.text)
    return engine


def python_checks() -> Iterator[Check]:
    """Python and the installed packages, compared with the requirements in the package's metadata."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        wanted = metadata.metadata("flsimulation")["Requires-Python"]
        lines = metadata.requires("flsimulation") or []
    except metadata.PackageNotFoundError:
        yield Check(
            "warning",
            "flsimulation is not installed, so its packages cannot be checked; pip install .",
        )
        return
    python = platform.python_version()
    good = SpecifierSet(wanted).contains(python, prereleases=True)
    yield Check(
        "good" if good else "bad", f"Python {python}" + ("" if good else f"; {wanted} is needed")
    )
    packages = [Requirement(line) for line in lines]
    needed = [p for p in packages if p.marker is None or p.marker.evaluate({"extra": ""})]
    wrong = []
    for package in needed:
        try:
            found = metadata.version(package.name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or not package.specifier.contains(found, prereleases=True):
            wrong.append(
                f"{package.name}: {found} is installed, {package.specifier} is needed; pip install '{package}'"
            )
    yield from (Check("bad", line) for line in wrong)
    if not wrong:
        yield Check("good", f"{len(needed)} packages, all in the required versions")


def file_checks(files: tuple[Path, ...]) -> Iterator[Check]:
    """The Compose file, and ``.env`` beside it, with versions and defaults."""
    if not files:
        text = f"no {FILE_NAME} here or in a folder above: flsim run works, flsim up needs a clone of the repository"
        yield Check("warning", text)
        return
    yield Check("good", f"Compose file: {', '.join(map(str, files))}")
    settings = files[0].parent / ".env"
    if settings.is_file():
        yield Check("good", f"settings: {settings}")
    else:
        text = f"no .env in {settings.parent}; copy it from the repository, it sets versions and defaults"
        yield Check("warning", text)


def engine_facts() -> dict[str, Any]:
    """What ``docker info`` reports. Raises `RunError` if the engine cannot be reached."""
    found: dict[str, Any] = parsed(ask("info", "--format", "{{json .}}"))
    if not found.get("ServerVersion"):
        error = (found.get("ServerErrors") or ["without a message"])[0]
        raise RunError(f"Docker's engine does not answer ({error}); start it")
    return found


def engine_check(engine: dict[str, Any]) -> Check:
    """The engine's version."""
    return _version_check("Docker Engine", engine["ServerVersion"], _ENGINE)


def compose_check(found: str) -> Check:
    """The version of Compose."""
    return _version_check("Docker Compose", found.strip(), _COMPOSE)


def _version_check(name: str, found: str, oldest: tuple[int, int]) -> Check:
    if version(found) >= oldest:
        return Check("good", f"{name} {found}")
    return Check(
        "bad", f"{name} {found} is too old: {oldest[0]}.{oldest[1]} or newer is needed; update it"
    )


def port_checks(project: Project | None, *, docker: bool = True) -> Iterator[Check]:
    """Each published port: free, used by this project, or used by another program."""
    for service, usual in PORTS.items():
        address = project.port(service) if project else ("127.0.0.1", usual)
        if address is None:
            continue
        host, port = address
        place = f"port {port} ({service})"
        if not taken(host, port):
            yield Check("good", f"{place} is free")
            continue
        holders = containers_at(port) if docker else []
        if project and [owner for _, owner in holders] == [project.name]:
            yield Check("good", f"{place} is used by this project's own {holders[0][0]}")
            continue
        holder = f"the container {holders[0][0]}" if holders else listener(port)
        free = next((p for p in range(port + 1, 65536) if not taken(host, p)), 0)
        yield Check(
            "bad",
            f"port {port} is used by {holder}; end it, or set {service.upper()}_PORT={free} in .env",
        )


def cgroup_check(engine: dict[str, Any]) -> Check:
    """Whether the kernel enforces the containers' memory limits."""
    found = f"control groups version {engine.get('CgroupVersion', 'unknown')}"
    if engine.get("MemoryLimit", True):
        return Check("good", found)
    return Check("warning", f"{found}: memory limits of containers have no effect here")


def memory(engine: dict[str, Any]) -> int:
    """Bytes available to Docker, with Docker Desktop less than the machine's; else the machine's."""
    return int(engine.get("MemTotal") or machine_memory_bytes())


def memory_check(total: int, clients: int) -> Check:
    """How many clients fit into the machine's (or Docker's) memory."""
    fit = max(0, (total - _REST_BYTES) // _CLIENT_BYTES)
    need = clients * _CLIENT_BYTES + _REST_BYTES
    found = f"memory: {_gib(total)}; {clients} client{'s need' if clients > 1 else ' needs'} about {_gib(need)}, {fit} fit"
    if clients <= fit:
        return Check("good", found)
    fewer = f"start fewer (flsim up --clients {fit}) or " if fit else ""
    return Check("bad", f"{found}; {fewer}give Docker more memory")


def limit_checks(project: Project) -> Iterator[Check]:
    """Whether the memory limit of a client's container is high enough."""
    client = project.services["client"]
    limits = client.get("deploy", {}).get("resources", {}).get("limits", {})
    limit = int(limits.get("memory") or client.get("mem_limit") or 0)
    if 0 < limit < _CLIENT_BYTES:
        yield Check(
            "warning",
            f"the memory limit of a client is {_gib(limit)} and it needs about {_gib(_CLIENT_BYTES)}: it may be killed; set CLIENT_MEMORY=1g in .env",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
