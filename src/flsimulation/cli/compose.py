"""Docker Compose for the network's verbs: the calls, and what their errors mean."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flsimulation.errors import InputError, RunError

FILE_NAME = "compose.yaml"
PORTS = {"superlink": 8080, "prometheus": 9090, "grafana": 3000}
"""The services that people reach from outside, and the ports they have unless told otherwise."""

_ANSWER_SECONDS = 60.0

# What Docker says -> what it means, and the remedy. The first that fits is taken.
_MEANINGS = (
    (r"permission denied.*(docker\.sock|daemon socket|docker API)", "you may not talk to Docker: permission denied on its socket; add yourself to its group (sudo usermod -aG docker $USER) and log in again"),
    (r"cannot connect to the docker daemon|is the docker daemon running|failed to connect to the docker api|error during connect", "Docker is installed, but its engine does not run; start it (sudo systemctl start docker, or open Docker Desktop)"),
    (r"unknown command: docker compose|'compose' is not a docker command|unknown flag: --(profile|short)", "Docker has no Compose 2; install its plugin (the package docker-compose-plugin, or Docker Desktop)"),
    (r"port is already allocated|address already in use|ports are not available", "{port} is taken by another program; end it, or choose another port (flsim doctor names both)"),
    (r"no space left on device", "the disk is full; docker system prune removes what nobody uses"),
    (r"container (?P<container>\S+) is unhealthy|container (?P<ended>\S+) exited \(", "{container} did not become healthy; flsim logs says why"),
    (r"pull access denied|manifest unknown|manifest for .* not found|no such host|failed to resolve|i/o timeout|toomanyrequests|tls handshake|connection refused|no route to host|context deadline exceeded", "an image cannot be had ({line}); check the connection, a proxy, or the versions in .env"),
)  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A Compose project, as Compose itself reads it."""

    files: tuple[Path, ...]
    name: str
    services: Mapping[str, Any]
    """Name of a service -> what Compose resolved for it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What this call sets over .env."""

    @property
    def folder(self) -> Path:
        """Where .env and the results lie."""
        return self.files[0].parent

    @property
    def clients(self) -> int:
        """Replicas of the service client."""
        client = self.services["client"]
        return int(client.get("deploy", {}).get("replicas") or client.get("scale") or 1)

    def port(self, service: str) -> tuple[str, int] | None:
        """Address and port where the service is published on this machine."""
        for published in self.services.get(service, {}).get("ports", []):
            if str(published.get("published", "")).isdigit():
                return published.get("host_ip") or "127.0.0.1", int(published["published"])
        return None

    def ask(self, *arguments: str, seconds: float | None = _ANSWER_SECONDS) -> str:
        """Call Compose and give what it prints."""
        whole = (*_compose(self.files), *arguments)
        return ask(*whole, environment=self.environment, seconds=seconds)

    def show(self, *arguments: str, explain: bool = False) -> int:
        """Call Compose on this terminal and give its exit status."""
        whole = (*_compose(self.files), *arguments)
        return show(*whole, environment=self.environment, explain=explain)

    def containers(self) -> list[dict[str, Any]]:
        """What runs, and what ended and is still there; ordered by service and replica."""
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
            return (folder / FILE_NAME,)
    raise InputError(
        f"no {FILE_NAME} here or above; run it in a clone of the repository, "
        "or name the file with --file or COMPOSE_FILE"
    )


def open_project(files: tuple[Path, ...], environment: Mapping[str, str] | None = None) -> Project:
    """Let Compose read the files.

    Raises
    ------
    InputError
        If they describe something else than FLSimulation's network.
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
            f"{files[0]} is not FLSimulation's: it has no service {' and no '.join(missing)}; "
            "name the right file with --file"
        )
    return Project(files, config.get("name", files[0].parent.name), services, environment)


def ask(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = _ANSWER_SECONDS,
) -> str:
    """Call docker and give what it prints.

    Raises
    ------
    RunError
        In one line: what is wrong, and the remedy.
    """
    with _docker_there():
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and the docker that is on PATH
                ["docker", *arguments],  # noqa: S607
                env=_environment(environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise RunError(
                f"docker {_verb(arguments)} did not answer within {seconds:g} s; restart Docker"
            ) from None
    if done.returncode:
        raise RunError(explain_errors(done.stderr or done.stdout, arguments))
    return done.stdout


def show(
    *arguments: str, environment: Mapping[str, str] | None = None, explain: bool = False
) -> int:
    """Call docker on this terminal and give its exit status; Ctrl-C ends it cleanly.

    With ``explain``, docker's messages are also read, and a failure raises `RunError`.
    """
    with (
        _docker_there(),
        subprocess.Popen(  # noqa: S603 - no shell, and the docker that is on PATH
            ["docker", *arguments],  # noqa: S607
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE if explain else None,
            encoding="utf-8",
            errors="replace",
            process_group=0,  # a signal reaches it once, through us
        ) as child,
        _passing_on(child),
    ):
        said = []
        for line in child.stderr or ():
            sys.stderr.write(line)
            said.append(line)
        status = child.wait()
    if explain and status:
        raise RunError(explain_errors("".join(said), arguments))
    return status


def explain_errors(text: str, arguments: tuple[str, ...]) -> str:
    """Docker's messages in one line: the first known meaning, or the last line."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    for pattern, meaning in _MEANINGS:
        for line in reversed(lines):
            found = re.search(pattern, line, re.IGNORECASE)
            if found:
                names = [name for name in found.groupdict().values() if name]
                ports = re.findall(r":(\d{2,5})\b", line)
                return meaning.format(
                    line=line.removeprefix("Error response from daemon: "),
                    port=f"port {ports[-1]}" if ports else "a port",
                    container=names[0] if names else "a container",
                )
    return f"docker {_verb(arguments)} failed: {lines[-1] if lines else 'it does not say why'}"


def parsed(text: str) -> Any:
    """Docker's JSON. Raises `RunError` if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        raise RunError(f"docker gave no JSON but {text[:60]!r}; is it Docker's own?") from None


def version(text: str) -> tuple[int, int]:
    """Major and minor number in a version such as ``v2.40.3-desktop.1``; 0.0 without one."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _compose(files: tuple[Path, ...]) -> tuple[str, ...]:
    """The words before Compose's own verb; all profiles, so that no service stays unseen."""
    named = [word for file in files for word in ("--file", str(file))]
    return "compose", "--profile", "*", *named


def _verb(arguments: tuple[str, ...]) -> str:
    """``compose up`` of a whole command."""
    if arguments[0] != "compose":
        return arguments[0]
    rest = list(arguments[1:])
    while rest[0] in ("--profile", "--file"):
        rest = rest[2:]
    return f"compose {rest[0]}"


def _environment(changes: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "COMPOSE_MENU": "0", **(changes or {})}


@contextlib.contextmanager
def _docker_there() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if error.filename != "docker":
            raise
        raise RunError(
            "docker is not installed, or not on PATH; install Docker Engine or Docker Desktop "
            "(flsim run needs neither)"
        ) from None
    except PermissionError as error:
        if error.filename != "docker":
            raise
        raise RunError("docker is on PATH, but you may not run it; ask its owner") from None


@contextlib.contextmanager
def _passing_on(child: subprocess.Popen[str]) -> Iterator[None]:
    """Hand Ctrl-C and SIGTERM to the child, wait for it, and only then stop ourselves."""
    received = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(child.pid, signal.SIGINT)  # docker and its plugin, each a process

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


def _place(service: str) -> int:
    order = ("superlink", "client", "run", "prometheus", "grafana", "grafana-password")
    return order.index(service) if service in order else len(order)


def _natural(name: str) -> list[tuple[int, str]]:
    """So that client-10 comes after client-9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
