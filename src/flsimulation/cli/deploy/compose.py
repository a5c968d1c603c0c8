"""Docker Compose for the network's verbs: the project as Compose resolves it, and calls."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flsimulation.cli.deploy.docker import ANSWER_SECONDS, ask, parsed, show
from flsimulation.errors import InputError, RunError

FILE_NAME = "compose.yaml"
SITES_FILE = "compose.sites.yaml"
"""Beside it: the clients of sites, which ``flsim up`` adds and ``flsim down`` removes."""
PORTS = {"superlink": 8080, "clients": 8081, "prometheus": 9090, "grafana": 3000}
"""What is reached from outside, and the default ports: services, and the SuperLink's for clients."""
RUNS, EXPERIMENTS = "/work/runs", "/work/experiments"
"""Folders of the results and the experiments in the containers."""
CA = "/flsim/trust/ca.pem"
"""The CA's certificate in the containers."""
WAITING, APART = "/flsim/waiting", "/flsim/apart"
"""Where a client leaves its public key in its container, and where the SuperLink has such folders of
single clients."""
ROLE = "flsimulation.role"
"""The label with the role of a service."""

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - address to listen at: to connect to


@dataclass(frozen=True)
class Project:
    """A Compose project, as Compose resolves it."""

    files: tuple[Path, ...]
    name: str
    services: Mapping[str, Any]
    """Name of a service -> its resolved configuration."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables set for the calls, which override .env."""

    @property
    def folder(self) -> Path:
        """The folder of the first Compose file and of .env."""
        return self.files[0].parent

    @property
    def client_services(self) -> tuple[str, ...]:
        """Services that run clients, by their role and not by name."""
        return tuple(name for name, service in self.services.items() if _is_client(service))

    @property
    def clients(self) -> int:
        """Replicas of all services that run clients and start by default."""
        services = [self.services[name] for name in self.client_services]
        return sum(_replicas(service) for service in services if not service.get("profiles"))

    @property
    def superlink(self) -> str | None:
        """``host:port`` of the SuperLink on this machine; None if its port is not published."""
        if (address := self.port("superlink")) is None:
            return None
        host, port = address
        host = _ANYWHERE.get(host, host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def ca(self) -> str | None:
        """The CA's certificate of the project's SuperLink, as PEM; None if it does not run."""
        try:
            found = self.ask("exec", "--no-TTY", "superlink", "cat", CA)
        except RunError:
            return None
        return found if "BEGIN CERTIFICATE" in found else None

    def mount(self, target: str) -> Path | None:
        """The folder of this machine that is mounted at ``target`` in the SuperLink's container."""
        for volume in self.services["superlink"].get("volumes", []):
            if volume.get("target") == target and volume.get("type") == "bind":
                return Path(volume["source"])
        return None

    def port(self, service: str) -> tuple[str, int] | None:
        """Address and port where the service is published on this machine."""
        of = "superlink" if service == "clients" else service
        ports = self.services.get(of, {}).get("ports", [])
        found = [one for one in ports if str(one.get("published", "")).isdigit()]
        exact = [one for one in found if one.get("target") == PORTS.get(service)]
        for one in exact or (found if service == of else []):
            return one.get("host_ip") or "127.0.0.1", int(one["published"])
        return None

    def ask(self, *arguments: str, seconds: float | None = ANSWER_SECONDS) -> str:
        """Call Compose and return its output."""
        whole = (*_compose(self.files), *arguments)
        return ask(*whole, environment=self.environment, seconds=seconds)

    def show(
        self,
        *arguments: str,
        explain: bool = False,
        each: Callable[[str], str | None] | None = None,
    ) -> int:
        """Call Compose on this terminal and return its exit status, as `docker.show`."""
        whole = (*_compose(self.files), *arguments)
        return show(*whole, environment=self.environment, explain=explain, each=each)

    def containers(self) -> list[dict[str, Any]]:
        """The project's containers, ended ones too, ordered by service and replica."""
        found = [parsed(line) for line in self.ask("ps", "--all", "--format", "json").splitlines()]
        rows = found[0] if found and isinstance(found[0], list) else found  # before Compose 2.21
        return sorted(rows, key=lambda row: (_place(row["Service"]), _natural(row["Name"])))


def find_files(file: Path | None) -> tuple[Path, ...]:
    """The Compose files: those named, else ``compose.yaml`` here or in a folder above.

    Raises
    ------
    InputError
        If there is none.
    """
    given = os.environ.get("COMPOSE_FILE", "")
    separator = os.environ.get("COMPOSE_PATH_SEPARATOR", os.pathsep)
    named = [file] if file is not None else [Path(part) for part in given.split(separator) if part]
    for path in named:
        if not path.is_file():
            source = "--file" if file is not None else "COMPOSE_FILE"
            raise InputError(f"{source} {path}: no such file")
    if named:
        return tuple(path.absolute() for path in named)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            files = (folder / FILE_NAME, folder / SITES_FILE)
            return tuple(path for path in files if path.is_file())
    raise InputError(
        f"no {FILE_NAME} here or in a folder above; run it in a clone of the repository, "
        "or specify the file with --file or COMPOSE_FILE"
    )


def open_project(files: tuple[Path, ...], environment: Mapping[str, str] | None = None) -> Project:
    """Open the project that the files describe.

    Raises
    ------
    InputError
        If they do not describe FLSimulation's network.
    RunError
        If Compose cannot read them.
    """
    environment = environment or {}
    text = ask(*_compose(files), "config", "--format", "json", environment=environment)
    config = parsed(text)
    services = config.get("services", {})
    missing = [name for name in ("superlink", "client") if name not in services]
    if missing:
        raise InputError(
            f"{files[0]} is not FLSimulation's Compose file: it has no service {' and no '.join(missing)}; "
            "specify the right file with --file"
        )
    return Project(files, config.get("name", files[0].parent.name), services, environment)


def _is_client(service: Mapping[str, Any]) -> bool:
    """By its label, else by its command: an override file may add clients."""
    labels = service.get("labels") or {}
    if ROLE in labels:
        return bool(labels[ROLE] == "client")
    return bool((service.get("command") or [""])[0] == "client")


def _replicas(service: Mapping[str, Any]) -> int:
    found = service.get("deploy", {}).get("replicas", service.get("scale"))
    return 1 if found is None else int(found)


def _compose(files: tuple[Path, ...]) -> tuple[str, ...]:
    """The arguments before Compose's verb; with all profiles, so that every service is included."""
    named = [word for file in files for word in ("--file", str(file))]
    return "compose", "--profile", "*", *named


def _place(service: str) -> int:
    order = ("superlink", "client", "run", "prometheus", "grafana", "grafana-password", "certs")
    return order.index(service) if service in order else len(order)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which client-10 comes after client-9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
