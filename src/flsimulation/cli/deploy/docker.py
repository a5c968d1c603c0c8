"""Calls of Docker's command line, and explanations of its errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flsimulation.errors import RunError

ANSWER_SECONDS = 60.0

# Docker's message -> what it means, and the remedy. The first pattern that matches is used.
_MEANINGS = (
    (r"permission denied.*(docker\.sock|daemon socket|docker API)", "no access to Docker: permission denied on its socket; add yourself to its group (sudo usermod -aG docker $USER) and log in again"),
    (r"cannot connect to the docker daemon|is the docker daemon running|failed to connect to the docker api|error during connect", "Docker is installed, but its engine is not running; start it (sudo systemctl start docker, or open Docker Desktop)"),
    (r"unknown command: docker compose|'compose' is not a docker command|unknown flag: --(profile|short)", "Docker has no Compose 2; install its plugin (the package docker-compose-plugin, or Docker Desktop)"),
    (r"port is already allocated|address already in use|ports are not available", "{port} is used by another program; end it, or choose another port (flsim doctor shows both)"),
    (r"no space left on device", "the disk is full; docker system prune removes unused images and containers"),
    (r"container (?P<container>\S+) is unhealthy|container (?P<ended>\S+) exited \(", "{container} did not become healthy; flsim logs says why"),
    (r"pull access denied|manifest unknown|manifest for .* not found|no such host|failed to resolve|i/o timeout|toomanyrequests|tls handshake|connection refused|no route to host|context deadline exceeded", "an image cannot be downloaded ({line}); check the connection, the proxy, and the versions in .env"),
)  # fmt: skip


def ask(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = ANSWER_SECONDS,
) -> str:
    """Call docker and return its output.

    Raises
    ------
    RunError
        With one line: what is wrong, and the remedy.
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
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    explain: bool = False,
    each: Callable[[str], str | None] | None = None,
) -> int:
    """Call docker on this terminal and return its exit status; Ctrl-C ends it cleanly.

    With ``explain``, a failure raises `RunError` with an explanation of docker's messages. With
    ``each``, every line of its output is passed to this function, and what it returns is printed;
    nothing for None.
    """
    said: list[str] = []
    with (
        _docker_there(),
        subprocess.Popen(  # noqa: S603 - no shell, and the docker that is on PATH
            ["docker", *arguments],  # noqa: S607
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if each is not None else None,
            stderr=subprocess.PIPE if explain else None,
            encoding="utf-8",
            errors="replace",
            process_group=0,  # a signal reaches it once, through us
        ) as child,
        _passing_on(child),
    ):
        listener = threading.Thread(target=_repeat, args=(child.stderr, said))
        listener.start()
        try:
            if each is not None:
                _show_each(child.stdout, each)
        except BrokenPipeError:  # the reader closed the pipe, as `| head` does
            os.killpg(child.pid, signal.SIGTERM)
            raise
        finally:
            listener.join()
        status = child.wait()
    if explain and status:
        raise RunError(explain_errors("".join(said), arguments))
    return status


def _repeat(stream: Iterable[str] | None, said: list[str]) -> None:
    for line in stream or ():
        sys.stderr.write(line)
        said.append(line)


def _show_each(stream: Iterable[str] | None, each: Callable[[str], str | None]) -> None:
    for line in stream or ():
        if (shown := each(line)) is not None:
            sys.stdout.write(shown)
            sys.stdout.flush()


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
    return f"docker {_verb(arguments)} failed: {lines[-1] if lines else 'without a message'}"


def parsed(text: str) -> Any:
    """Parse docker's JSON. Raises `RunError` if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        raise RunError(
            f"docker printed {text[:60]!r} instead of JSON; is `docker` Docker's own command?"
        ) from None


def version(text: str) -> tuple[int, int]:
    """Major and minor number of a version such as ``v2.40.3-desktop.1``; 0, 0 if there is none."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _verb(arguments: tuple[str, ...]) -> str:
    """The verb of a whole command, such as ``compose up``."""
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
        raise RunError(
            "docker is on PATH, but you have no permission to run it; ask its owner"
        ) from None


@contextlib.contextmanager
def _passing_on(child: subprocess.Popen[str]) -> Iterator[None]:
    """Forward Ctrl-C and SIGTERM to the child; raise `KeyboardInterrupt` after it has ended."""
    received = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(child.pid, signal.SIGINT)  # docker and its plugin are two processes

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
