"""``flsim superlink``: its certificate and its addresses; then it runs."""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge

from flsimulation.errors import InputError
from flsimulation.internals.flower_words import SERVER_APP
from flsimulation.metrics.table import CERTIFICATE_METRIC, REFUSED_METRIC, make_metric
from flsimulation.node.admission import register_beside
from flsimulation.node.node import Node
from flsimulation.runtimes.network.names import ADMITTED, CLIENTS, MEMORY
from flsimulation.security import home, issuing
from flsimulation.security.register import Register

if TYPE_CHECKING:
    from flsimulation.events import Event

_USER = "flsim"  # of the image, in place of root


def run_superlink(
    host: str,
    port: int,
    clients: tuple[str, int],
    memory: Path,
    metrics_port: int,
    metrics_for: str | None,
    admit_names: str = ".*",
) -> None:
    """Run the SuperLink, warm processes for its runs, and the server's metrics.

    Parameters
    ----------
    host, port
        Address for submitting and stopping runs, and all else.
    clients : tuple of str and int
        Address for the clients only.
    memory : Path
        File that stores which client holds which partition; the clients' register is beside it.
    metrics_port : int
        Port to serve the metrics on.
    metrics_for : str, optional
        See `Node.run`.
    admit_names : str
        Regular expression of the names that clients of this machine may take without `flsim admit`.

    Raises
    ------
    InputError
        If it is no regular expression, or a port is not free.
    """
    from flsimulation.metrics.container import ContainerCollector
    from flsimulation.metrics.server import PrometheusMetrics
    from flsimulation.runtimes.network.events import from_json

    arguments = (
        *(*_protection(), "--host", host, "--port", str(port)),
        "--disable-runtime-dependency-installation",
    )
    try:
        re.compile(admit_names)
    except re.error as error:
        raise InputError(
            f"--admit-names {admit_names}: not a regular expression ({error}); correct it"
        ) from None
    check_free(host, port, "--port")
    check_free(*clients, "--clients-port")
    metrics = PrometheusMetrics(clients=None)
    _settle(memory, metrics)
    metrics.registry.register(ContainerCollector())
    if not home.is_insecure():
        _count_refusals(register_beside(memory), metrics.registry)
        show_certificates(home.home(), metrics.registry)
    node = Node(
        "superlink",
        arguments,
        SERVER_APP,
        metrics.registry,
        lambda line: metrics(from_json(line)),
    )
    environment = {
        MEMORY: str(memory),
        CLIENTS: f"{clients[0]}:{clients[1]}",
        ADMITTED: admit_names,
    }
    node.run(metrics_port, metrics_for, environment)


def _protection() -> tuple[str, ...]:
    """Arguments for TLS and the nodes' keys, after certificates were made where they are missing."""
    if home.is_insecure():
        print(f"flsim: {home.WARNING}", flush=True)
        return ("--insecure",)
    place = home.home()
    if made := _ensured(place):
        what = "a CA and the SuperLink's certificate" if made == "made" else "the certificate"
        print(f"flsim: {made} {what} in {place.folder}", flush=True)
    return (
        *("--ssl-ca-certfile", str(place.ca)),
        *("--ssl-certfile", str(place.server), "--ssl-keyfile", str(place.server_key)),
        "--enable-supernode-auth",
    )


def _ensured(place: home.Home) -> str:
    """What was done for the certificates; an old one is used while nothing here can sign another."""
    is_there = place.server.is_file() and place.server_key.is_file()
    try:
        return issuing.ensure(place)
    except InputError as error:
        if not is_there:
            raise
        print(f"flsim: {error}", flush=True)
        return ""


def _count_refusals(register: Register, registry: CollectorRegistry) -> None:
    gauge = make_metric(REFUSED_METRIC, registry)
    assert isinstance(gauge, Gauge)  # noqa: S101 - the table says so
    gauge.set_function(lambda: float(sum(register.refused().values())))


def show_certificates(place: home.Home, registry: CollectorRegistry) -> None:
    """Serve in how many seconds the CA's and the SuperLink's certificate expire, as files have it now."""
    gauge = make_metric(CERTIFICATE_METRIC, registry)
    assert isinstance(gauge, Gauge)  # noqa: S101 - the table says so
    for name, path in (("ca", place.ca), ("superlink", place.server)):
        gauge.labels(name).set_function(partial(issuing.seconds_left, path))


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

    If the folder is root's, continue as the image's user; its group may write there.

    Raises
    ------
    InputError
        If the folder does not exist, or is root's and there is no such user.
    """
    if os.geteuid() != 0:
        return
    user, group = owner_of(folder)
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)


def owner_of(folder: Path) -> tuple[int, int]:
    """User and group as which a SuperLink that is started as root continues: never root.

    Raises
    ------
    InputError
        As `become_owner_of`.
    """
    if not folder.is_dir():
        raise InputError(f"--as-owner-of {folder}: no such folder; create it first")
    owner = folder.stat()
    if owner.st_uid:
        return owner.st_uid, owner.st_gid
    try:
        found = pwd.getpwnam(_USER)
    except KeyError:
        raise InputError(
            f"--as-owner-of {folder}: it belongs to root, and a SuperLink does not run as root; "
            "make another user its owner (chown)"
        ) from None
    return found.pw_uid, found.pw_gid


def let_write(folder: Path, group: int) -> None:
    """Let a group write into a folder of root's, where the SuperLink does not run as root."""
    found = folder.stat()
    if found.st_uid == 0:
        os.chown(folder, -1, group)
        folder.chmod(found.st_mode & 0o7777 | 0o2070)


def check_free(host: str, port: int, option: str) -> None:
    """Raise `InputError` if the port is not available."""
    try:
        ((family, _, _, _, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"{option} {port}: cannot listen on {host}:{port} ({error.strerror or error}); "
            f"choose another port, or end the program that uses it"
        ) from None
