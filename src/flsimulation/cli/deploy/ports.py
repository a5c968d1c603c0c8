"""Which program or container listens on a port of this machine."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from flsimulation.cli.deploy.docker import ask


def taken(host: str, port: int) -> bool:
    """Whether a program listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return False  # a port below 1024: Docker is allowed to use it
        except OSError:
            return True
    return False


def containers_at(port: int) -> list[tuple[str, str]]:
    """Name and Compose project of the containers that publish the port."""
    form = '{{.Names}}\t{{.Label "com.docker.compose.project"}}'
    text = ask("ps", "--filter", f"publish={port}", "--format", form)
    rows = [line.partition("\t") for line in text.splitlines() if line]
    return [(name, owner) for name, _, owner in rows]


def listener(port: int) -> str:
    """The program that listens on a port, as far as this user can see."""
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for place in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(place.readlink()) in sockets:
                process = place.parent.parent
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return "another program"
