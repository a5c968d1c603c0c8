"""The main process of a container: keeps Flower's programs running and serves metrics."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry

from flsimulation.errors import InputError
from flsimulation.internals.flower_words import CLIENT_APP, SERVER_APP, SUPEREXEC
from flsimulation.metrics.exporter import served
from flsimulation.node import sockets
from flsimulation.node.health import Health, describe_end, keep_trouble, see_kills
from flsimulation.node.shims import write_shims
from flsimulation.runtimes.network.names import (
    MEMORY,
    REPORTS,
    TROUBLE,
    WARM,
)

if TYPE_CHECKING:
    from flsimulation.events import Event

_AGAIN_SECONDS = 1.0  # before a program that ended is started again; twice as long each time ...
_LATEST_SECONDS = 60.0  # ... up to this
_STAYED_SECONDS = 60.0  # after this, the end of a program counts as unrelated to its last one
_END_SECONDS = 8.0  # that the programs have to end; Docker allows ten in total

# For Flower's programs: no telemetry, no update checks, and CUDA is detected without using it.
_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # otherwise forks cannot use the GPU
}


@dataclass(frozen=True)
class Node:
    """One end of a network.

    Parameters
    ----------
    role : str
        ``client`` or ``superlink``.
    arguments : tuple of str
        Arguments of Flower's long-running program, ``flower-supernode`` or ``flower-superlink``.
    launches : str
        The command that it starts for each task.
    registry : CollectorRegistry
        The metrics to serve.
    count : callable
        Called with the reports of the launched processes.
    """

    role: Literal["client", "superlink"]
    arguments: tuple[str, ...]
    launches: str
    registry: CollectorRegistry
    count: Callable[[Any], None]

    def run(self, metrics_port: int, memory: Path | None = None) -> None:
        """Keep the node running until SIGTERM or Ctrl-C.

        Raises
        ------
        InputError
            If the port of the metrics is not available, or Flower's programs are not installed.
        """
        with tempfile.TemporaryDirectory(prefix="flsim-") as folder:
            environment = self._environment(Path(folder), memory)
            os.environ[TROUBLE] = environment[TROUBLE]
            health = Health(self.registry)
            with (
                sockets.received(Path(environment[REPORTS]), self._counting(health)),
                served(self.registry, metrics_port, "0.0.0.0"),  # noqa: S104 - a container's
            ):
                _keep_up(
                    (
                        *(sys.executable, "-m", "flsimulation.node"),
                        *(environment[WARM], self.role, *self.arguments),
                    ),
                    environment,
                    health,
                    f"{self.role.upper()}_MEMORY",
                )

    def _counting(self, health: Health) -> Callable[[Any], None]:
        def count(report: Any) -> None:
            if not isinstance(report, dict):
                self.count(report)
            elif "up" in report:
                health.is_up()
            else:
                if "killed" in report:
                    see_kills()  # this one is reported already
                    health.message_was_killed()
                elif report.get("metrics"):
                    health.message_was_answered()
                self.count(report)

        return count

    def _environment(self, folder: Path, memory: Path | None) -> dict[str, str]:
        real = {command: _installed(command) for command in (self.launches, SUPEREXEC)}
        shims = folder / "bin"
        write_shims(shims, folder / "warm", real)
        environment = {
            "FLWR_HOME": str(folder / "flower"),
            **os.environ,
            **_FLOWER,
            "PATH": f"{shims}:{os.environ.get('PATH', '')}",
            WARM: str(folder / "warm"),
            REPORTS: str(folder / "reports"),
            TROUBLE: str(folder / "trouble"),
        }
        return environment | ({MEMORY: str(memory)} if memory is not None else {})


def run_client(superlink: str, name: str | None, partition: int | None, metrics_port: int) -> None:
    """Run a client: Flower's SuperNode, warm processes for its messages, and its metrics.

    Parameters
    ----------
    superlink : str
        ``host:port`` of the SuperLink.
    name : str, optional
        The name by which the server recognizes the client; by default the host's name.
    partition : int, optional
        The partition to hold; by default the server assigns one.
    metrics_port : int
        Port to serve the metrics on.
    """
    from flsimulation.metrics.client import ClientMetrics

    name = name or socket.gethostname()
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise InputError(f"--name {name}: use letters, digits, '.', '_' and '-'")
    if not re.fullmatch(r"[^\s/]+:[0-9]+", superlink):
        raise InputError(f"--superlink {superlink}: write it as host:port, e.g. superlink:8080")
    config = f'name="{name}"'
    if partition is not None:
        config += f" partition-id={partition}"
    arguments = (
        *("--insecure", "--superlink", superlink, "--node-config", config),
        *("--port", str(_free_port())),
    )
    metrics = ClientMetrics(name)
    Node("client", arguments, CLIENT_APP, metrics.registry, metrics.count).run(metrics_port)


def run_superlink(host: str, port: int, memory: Path | None, metrics_port: int) -> None:
    """Run the SuperLink, warm processes for its runs, and the server's metrics.

    Parameters
    ----------
    host, port
        Address that the SuperLink listens at.
    memory : Path, optional
        File that stores which client holds which partition.
    metrics_port : int
        Port to serve the metrics on.
    """
    from flsimulation.metrics.container import ContainerCollector
    from flsimulation.metrics.server import PrometheusMetrics
    from flsimulation.runtimes.network.events import from_json

    arguments = (
        *("--insecure", "--host", host, "--port", str(port)),
        "--disable-runtime-dependency-installation",
    )
    _check_free(host, port)
    metrics = PrometheusMetrics(clients=None)
    _settle(memory, metrics)
    metrics.registry.register(ContainerCollector())
    node = Node(
        "superlink",
        arguments,
        SERVER_APP,
        metrics.registry,
        lambda line: metrics(from_json(line)),
    )
    node.run(metrics_port, memory)


def _settle(memory: Path | None, metrics: Callable[[Event], None]) -> None:
    """Write and print the ends of runs that an earlier SuperLink left when it was killed."""
    from flsimulation.node.ends import last_end, settle_runs
    from flsimulation.rundir.manifest import KILLED
    from flsimulation.runtimes.resuming import resume_command

    for run_dir, manifest in settle_runs(memory):
        text = "interrupted in its first round; start it again"
        if rounds := manifest["rounds"]:
            clients = manifest.get("data", {}).get("clients")
            command = resume_command(run_dir, clients=clients)
            if manifest["error"] == KILLED:  # it may be a run in one process
                command = f"flsim run --resume {run_dir}"
            text = f"interrupted after round {rounds}; resume it with `{command}`"
        print(f"flsim: {run_dir}: {text}", flush=True)
    for event in last_end(memory) or ():
        metrics(event)


def become_owner_of(folder: Path) -> None:
    """If this is root, continue as the owner of a folder, who then owns the files written there.

    Raises
    ------
    InputError
        If the folder does not exist.
    """
    if os.geteuid() != 0:
        return
    if not folder.is_dir():
        raise InputError(f"--as-owner-of {folder}: no such folder; create it first")
    owner = folder.stat()
    os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def _keep_up(
    command: tuple[str, ...], environment: Mapping[str, str], health: Health, variable: str
) -> None:
    """Run a program, and restart it whenever it ends, until this process is ended."""
    pause = _AGAIN_SECONDS / 2
    while True:
        began = time.monotonic()
        program = subprocess.Popen(command, env=dict(environment))  # noqa: S603
        try:
            status = program.wait()
        finally:
            _end(program)
        health.is_down()
        stayed = time.monotonic() - began >= _STAYED_SECONDS
        pause = _AGAIN_SECONDS if stayed else min(_LATEST_SECONDS, 2 * pause)
        end = describe_end(status, variable)
        keep_trouble(f"its container's program was {end}")
        print(f"flsim: the program of this container was {end}; restart in {pause:g} s", flush=True)
        time.sleep(pause)


def _end(program: subprocess.Popen[bytes]) -> None:
    if program.poll() is None:
        program.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(_END_SECONDS)
        program.kill()
        program.wait()


def _installed(command: str) -> str:
    """Full path of one of Flower's commands: beside this Python, else on the PATH."""
    beside = Path(sys.executable).parent / command
    found = str(beside) if beside.is_file() else shutil.which(command)
    if found is None:
        raise InputError(f"{command} is not installed here; install flwr, which contains it")
    return found


def _check_free(host: str, port: int) -> None:
    """Raise `InputError` if the port is not available."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"--port {port}: cannot listen on {host}:{port} ({error.strerror or error}); "
                f"choose another port, or end the program that uses it"
            ) from None


def _free_port() -> int:
    """A port for the SuperNode's own programs; several clients may run on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
