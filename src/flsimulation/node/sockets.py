"""Between the processes of one machine: objects as JSON over a local socket, and a free port."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_PAUSE_SECONDS = 0.1  # after a report that could not be received
_SECONDS = 30.0  # timeout; the other side is on this machine, which may be busy


def send(path: str | Path, content: Any) -> None:
    """Send one object. Raises ``OSError`` if no process listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS)
        connection.connect(str(path))
        connection.sendall(json.dumps(content).encode())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until it was read


def receive(listener: socket.socket) -> Any:
    """Accept one connection and return the object that it sends; None if that is not JSON."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(_SECONDS)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
            content = json.loads(b"".join(parts))
            connection.sendall(b"\n")
        except (OSError, ValueError):
            return None
        return content


def listen(path: str | Path) -> socket.socket:
    """A socket that listens at a path, and replaces an old one."""
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(128)
    return listener


@contextlib.contextmanager
def received(path: Path, count: Callable[[Any], None]) -> Iterator[None]:
    """Inside the block, call ``count`` with every object that is sent to the socket."""
    listener = listen(path)

    def take() -> None:
        while True:
            try:
                count(receive(listener))
            except Exception as error:
                if listener.fileno() < 0:
                    return  # it was closed
                with contextlib.suppress(OSError):  # the log may be on a disk that is full
                    print(f"flsim: a report could not be counted: {error!r}", file=sys.stderr)
                time.sleep(_PAUSE_SECONDS)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.close()


def free_port() -> int:
    """A port of the loopback address that no program uses, to be used at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
