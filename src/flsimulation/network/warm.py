"""Processes that start warm: a server that forks, behind Flower's own launch command.

For every message Flower starts the command ``flwr-clientapp`` (and for every run
``flwr-serverapp``), which imports PyTorch and Lightning anew. In our containers a command of the
same name comes first on the PATH: it hands its arguments to the process here, which has all
imports, and the data and model of the last experiment, and forks. The fork runs Flower's own
command. docs/decisions/0009 says why, and what of Flower this depends on.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from flsimulation.network import sockets

_LOOK_SECONDS = 0.05  # between two looks whether the data is there
_CLIENT_APP = "flwr-clientapp"
_HOLD_SECONDS = 20.0  # that a launch waits for it; Flower gives a task up after a minute
_SHIM = """\
#!{python} -IS
import os, socket, sys
try:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(60)
        s.connect({socket!r})
        import json
        s.sendall(json.dumps({{"launch": {command!r}, "arguments": sys.argv[1:]}}).encode())
        s.shutdown(socket.SHUT_WR)
        if s.recv(1):
            sys.exit(0)
except OSError:
    pass
os.execv({real!r}, [{real!r}, *sys.argv[1:]])  # nobody listens: start cold
"""


def write_shims(folder: Path, path: Path, commands: dict[str, str]) -> None:
    """Write the commands that hand over to the server at ``path``.

    Parameters
    ----------
    folder : Path
        To come first on the PATH.
    path : Path
        The server's socket.
    commands : dict
        Command name to the full path of Flower's own, which runs where no server listens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for command, real in commands.items():
        shim = folder / command
        text = _SHIM.format(python=sys.executable, socket=str(path), command=command, real=real)
        shim.write_text(text, encoding="utf-8")
        shim.chmod(0o755)


class WarmServer:
    """Forks a process for every launch that it is asked for.

    Parameters
    ----------
    path : Path
        Socket to listen at.
    prepare : callable, optional
        Loads what the next launches of an experiment need, given its flattened form.
    died : callable, optional
        Is told the arguments and the signal of a process that was killed; runs in a fork of its
        own, in place of the process.
    """

    def __init__(
        self,
        path: Path,
        prepare: Callable[[dict[str, Any]], None] | None = None,
        died: Callable[[int], None] | None = None,
    ) -> None:
        self._path = path
        self._listener = sockets.listen(path)
        self._prepare = prepare
        self._died = died
        self._children: dict[int, dict[str, Any]] = {}
        self._held: list[dict[str, Any]] = []  # launches that wait for the data
        self._held_until = 0.0
        self._prepared: dict[str, Any] | None = None
        self._next: _Prepared | None = None

    def serve(self) -> None:
        """Serve until the process is ended."""
        gc.collect()
        gc.freeze()  # or the collector of each fork would copy the memory that they share
        wake, waker = os.pipe()
        waited: list[int | socket.socket] = [self._listener, wake]
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select(waited, [], [], _LOOK_SECONDS if self._held else None)
            self._launch_held()
            if wake in ready:
                os.read(wake, 4096)
                self._reap()
            if self._listener in ready:
                self._answer(sockets.receive(self._listener))

    def _answer(self, request: Any) -> None:
        if not isinstance(request, dict):
            return
        if "launch" in request and request["launch"] != _CLIENT_APP:
            self._fork(request)
        elif "launch" in request:
            self._held.append(request)
            self._held_until = time.monotonic() + _HOLD_SECONDS
            self._launch_held()
        elif "experiment" in request and request["experiment"] != self._prepared:
            self._prepared = request["experiment"]
            self._replace_prepared()

    def _launch_held(self) -> None:
        """Launch what waits: from the data if it is there, without if it takes too long."""
        loading = self._held and self._next is not None and self._next.is_loading()
        if loading and time.monotonic() < self._held_until:
            return
        held, self._held = self._held, []
        for request in held:
            if self._next is None or not self._next.launch(request):
                self._fork(request)

    def _fork(self, request: dict[str, Any], killed_by: int | None = None) -> None:
        process = os.fork()
        if process:
            if killed_by is None:
                self._children[process] = request
            return
        self._become(lambda: self._run(request, killed_by))

    def _run(self, request: dict[str, Any], killed_by: int | None) -> None:
        if killed_by is not None and self._died is not None:
            self._died(killed_by)
        _run_command(request["launch"], request["arguments"])

    def _replace_prepared(self) -> None:
        """Fork a server that loads the experiment and then forks in our place."""
        if self._prepare is None:
            return
        if self._next is not None:
            self._next.end()
        path = Path(f"{self._path}.{os.getpid()}")
        ours, theirs = socket.socketpair()
        process = os.fork()
        if process:
            theirs.close()
            self._next = _Prepared(process, path, ours)
            return
        ours.close()
        self._become(lambda: self._serve_prepared(path, theirs))

    def _serve_prepared(self, path: Path, ready: socket.socket) -> None:
        assert self._prepare is not None  # noqa: S101 - checked before the fork
        assert self._prepared is not None  # noqa: S101
        self._prepare(self._prepared)
        server = WarmServer(path, None, self._died)
        ready.sendall(b"\n")
        server.serve()

    def _become(self, work: Callable[[], None]) -> None:
        """In a fork: leave the server behind, work, and end."""
        status = 1
        try:
            self._listener.close()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            request = self._children.pop(process, None)
            if request is not None and request["launch"] == _CLIENT_APP and os.WIFSIGNALED(status):
                self._fork(request, os.WTERMSIG(status))
            if self._next is not None and self._next.process == process:
                self._next = None  # could not load it; the next launch says why
                self._prepared = None


class _Prepared:
    """A server of our own that has an experiment's data and model."""

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
        """Hand a launch over; False if it is not ready."""
        if self.is_loading():
            return False
        try:
            sockets.send(self._path, request)
        except OSError:
            return False
        return True

    def end(self) -> None:
        """End it; what it forked goes on."""
        self._ready.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGTERM)
        self._path.unlink(missing_ok=True)


def _run_command(command: str, arguments: list[str]) -> None:
    """Run an installed command in this process, as its own script would."""
    (entry,) = entry_points(group="console_scripts", name=command)
    sys.argv = [command, *arguments]
    entry.load()()
