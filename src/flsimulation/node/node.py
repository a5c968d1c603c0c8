"""The main process of a container: keeps Flower's programs running and serves metrics."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from flsimulation.errors import InputError
from flsimulation.host.proxies import spare_local_names
from flsimulation.internals.flower_words import OTHER_APPS, SUPEREXEC
from flsimulation.metrics.exporter import served
from flsimulation.node import sockets
from flsimulation.node.health import Health, describe_end, keep_trouble, see_kills
from flsimulation.node.shims import write_shims
from flsimulation.runtimes.network.names import REPORTS, TROUBLE, WARM

_AGAIN_SECONDS = 1.0  # before a program that ended is started again; twice as long each time ...
_LATEST_SECONDS = 60.0  # ... up to this
_STAYED_SECONDS = 60.0  # after this, the end of a program counts as unrelated to its last one
_END_SECONDS = 8.0  # that the programs have to end; Docker allows ten in total

# For Flower's programs: no telemetry, no update checks, and CUDA is detected without using it.
_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # nothing that a run names is installed
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

    def run(self, metrics_port: int, metrics_for: str | None, variables: Mapping[str, str]) -> None:
        """Keep the node running until SIGTERM or Ctrl-C.

        Parameters
        ----------
        metrics_port : int
            Port to serve the metrics on, at the loopback address.
        metrics_for : str, optional
            Name or address of a host that may read them, too: then they are served at all addresses,
            and other hosts are refused.
        variables : mapping
            Environment of the node's programs, besides this process's.

        Raises
        ------
        InputError
            If the port of the metrics is not available, or Flower's programs are not installed.
        """
        spare_local_names()
        with tempfile.TemporaryDirectory(prefix="flsim-") as folder:
            environment = {**self._environment(Path(folder)), **variables}
            os.environ[TROUBLE] = environment[TROUBLE]
            health = Health(self.registry)
            with (
                sockets.received(Path(environment[REPORTS]), self._counting(health)),
                served(self.registry, metrics_port, reader=metrics_for),
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

    def _environment(self, folder: Path) -> dict[str, str]:
        real: dict[str, str | None] = {
            command: _installed(command) for command in (self.launches, SUPEREXEC)
        }
        shims, is_client = folder / "bin", self.role == "client"
        if is_client:
            real[self.launches] = None  # Flower's own would run the app that arrives
        write_shims(shims, folder / "warm", real, OTHER_APPS if is_client else ())
        return {
            "FLWR_HOME": str(folder / "flower"),
            **os.environ,
            **_FLOWER,
            "PATH": f"{shims}:{os.environ.get('PATH', '')}",
            WARM: str(folder / "warm"),
            REPORTS: str(folder / "reports"),
            TROUBLE: str(folder / "trouble"),
        }


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
