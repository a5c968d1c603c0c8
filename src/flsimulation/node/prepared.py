"""A fork of a warm server that has an experiment's data and model, and forks in its place."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

from flsimulation.node import sockets


class Prepared:
    """Handle of a forked server that loads an experiment's data and model."""

    def __init__(self, process: int, path: Path, ready: socket.socket) -> None:
        self.process = process
        self._path = path
        self._ready = ready
        ready.setblocking(False)
        self._listens = False

    def is_loading(self) -> bool:
        """Whether it is not ready yet."""
        if not self._listens:
            with contextlib.suppress(BlockingIOError):
                self._listens = self._ready.recv(1) == b"\n"
        return not self._listens

    def launch(self, request: dict[str, Any]) -> bool:
        """Forward a launch to it; False if it is not ready."""
        if self.is_loading():
            return False
        try:
            sockets.send(self._path, request)
        except OSError:
            return False
        return True

    def end(self) -> None:
        """End it; its forks continue."""
        with contextlib.suppress(OSError):
            self._ready.shutdown(socket.SHUT_RDWR)
        self._ready.close()

    def forget(self) -> None:
        """Close the socket without ending it; called in a fork."""
        self._ready.close()
