"""A warm server: a process with all imports that forks for every command that Flower starts.

For every message Flower starts the command ``flwr-clientapp`` (and for every run
``flwr-serverapp``), which imports PyTorch and Lightning each time. Here a command of the same name
comes first on the PATH: it sends its arguments to the warm server, which has all imports, and the
data and model of the last experiment, and forks. The fork runs Flower's own command.
docs/decisions/0009 has the reasons, and what this depends on in Flower.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flsimulation.host.processes import compact, end_group, end_with_parent, is_there
from flsimulation.internals.flower_words import CLIENT_APP, SERVER_APP, SUPEREXEC
from flsimulation.node import sockets
from flsimulation.node.health import describe_end
from flsimulation.node.launches import Killed, Launched
from flsimulation.node.prepared import Prepared
from flsimulation.node.shims import run_command
from flsimulation.runtimes.network.names import LEFT

_SOON_SECONDS = 10.0  # a program that ends sooner than this has an error
_LATEST_SECONDS = 30.0  # between two starts of such a program
_LOOK_SECONDS = 0.05  # between two checks whether data is loaded, or a program has ended
_HOLD_SECONDS = 20.0  # that a launch waits for the data; Flower abandons a task after a minute
_AGAIN_SECONDS = 1.0  # before the long-running program is started again
_RUNS_SECONDS = 4.0  # that a run has to write and report its end
_END_SECONDS = 3.0  # that the program has to end by itself; Docker allows ten in total


class WarmServer:
    """Forks a process for every launch that is requested.

    Parameters
    ----------
    path : Path
        Socket to listen at.
    program : callable, optional
        Flower's long-running program; it is kept running in a fork.
    prepare : callable, optional
        Loads what the next launches of a run need; called with the request of a launched process.
    killed : callable, optional
        Called, in a separate process, with a launched process that was killed. If it was a
        ClientApp, the program is restarted: Flower's SuperNode would wait a minute for the reply,
        and take no other message in that time. The program is also restarted after a SuperExec
        ended, for whatever reason.
    parent : socket, optional
        The server ends when the other side closes this socket.
    base : Path, optional
        Path of the socket of the server that runs the program, if it is not this one.
    serving : callable, optional
        Called when the server begins to serve.

    Processes launched for a program are in the program's process group, and end with it.
    """

    def __init__(
        self,
        path: Path,
        program: Callable[[], None] | None = None,
        prepare: Callable[[dict[str, Any]], None] | None = None,
        killed: Callable[[Killed], None] | None = None,
        parent: socket.socket | None = None,
        base: Path | None = None,
        serving: Callable[[], None] | None = None,
    ) -> None:
        self._path = path
        self._serving = serving
        self._listener = sockets.listen(path)
        self._program = program
        self._running: int | None = None
        self._started = self._start_at = 0.0
        self._at_once = False  # whether the next start is without a pause
        self._quick = 0  # times in a row that the program ended soon
        self._prepare = prepare
        self._prepared: dict[str, Any] | None = None
        self._next: Prepared | None = None
        self._killed = killed
        self._parent = parent
        self._base = base
        self._launched: dict[int, Launched] = {}
        self._held: list[dict[str, Any]] = []  # launches that wait for the data
        self._held_until = 0.0

    def serve(self) -> None:
        """Serve until SIGTERM, or until the parent closes its socket."""
        compact()
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches our parent, which ends us
        waited: list[int | socket.socket] = [self._listener, wake]
        waited += [self._parent] if self._parent is not None else []
        if self._serving is not None:
            self._serving()
        try:
            while True:
                self._keep_running()
                pause = _LOOK_SECONDS if self._held or self._is_to_start() else None
                ready, _, _ = select.select(waited, [], [], pause)
                if self._parent in ready:
                    return
                if wake in ready:
                    os.read(wake, 4096)
                    self._reap()
                if self._listener in ready:
                    self._answer(sockets.receive(self._listener))
                self._launch_held()
        finally:
            try:
                self._end_runs()
            finally:
                self._end_program()

    def _is_to_start(self) -> bool:
        return self._program is not None and self._running is None

    def _keep_running(self) -> None:
        program = self._program
        if program is not None and self._is_to_start() and time.monotonic() >= self._start_at:
            self._running = self._fork(program, group=0)
            self._started = time.monotonic()

    def _answer(self, request: Any) -> None:
        if not isinstance(request, dict):
            return
        if "launch" in request:
            request.setdefault("group", self._running)  # the program that launches it
        if request.get("launch") == CLIENT_APP:
            self._held.append(request)
            self._held_until = time.monotonic() + _HOLD_SECONDS
        elif "launch" in request:
            self._launch(request)
        elif "restart" in request:
            self._restart_program(at_once=True)
        elif "prepare" in request and request["prepare"] != self._prepared:
            self._prepared = request["prepare"]
            self._replace_prepared()

    def _launch_held(self) -> None:
        """Launch held requests: from the loaded data, or without it if loading takes too long."""
        loading = self._held and self._next is not None and self._next.is_loading()
        if loading and time.monotonic() < self._held_until:
            return
        held, self._held = self._held, []
        for request in held:
            if self._next is None or not self._next.launch(request):
                self._launch(request)

    def _launch(self, request: dict[str, Any]) -> None:
        command, arguments = request["launch"], tuple(request["arguments"])
        program = request["group"]
        if program is not None and not is_there(program):
            return  # it has ended in the meantime
        group = None if command == SERVER_APP else program  # a run ends by itself
        process = self._fork(lambda: run_command(command, list(arguments)), group)
        self._launched[process] = Launched(command, arguments, program)

    def _replace_prepared(self) -> None:
        """Fork a server that loads the experiment and then forks in place of this one."""
        if (prepare := self._prepare) is None:
            return
        if self._next is not None:
            self._next.end()
        path, order = Path(f"{self._path}.{os.getpid()}"), self._prepared
        ours, theirs = socket.socketpair()

        def serve() -> None:
            end_with_parent()
            ours.close()
            prepare(order or {})
            ready, killed = partial(theirs.sendall, b"\n"), self._killed
            WarmServer(path, killed=killed, parent=theirs, base=self._path, serving=ready).serve()

        self._next = Prepared(self._fork(serve), path, ours)
        theirs.close()

    def _fork(self, work: Callable[[], None], group: int | None = None) -> int:
        """Run ``work`` in a fork, in the process group of a program or, for 0, a new group."""
        process = os.fork()
        if group is not None:
            with contextlib.suppress(OSError):  # in both processes: the first to continue needs it
                os.setpgid(process, group)
        if process:
            return process
        status = 1
        try:
            self._listener.close()
            if self._next is not None:
                self._next.forget()
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
                process, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            if process == self._running:
                end_group(process)
                self._plan_restart(os.waitstatus_to_exitcode(status))
            elif self._next is not None and process == self._next.process:
                self._next = self._prepared = None  # the next launch shows why
            elif (launched := self._launched.pop(process, None)) is not None:
                self._after(launched, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)

    def _after(self, launched: Launched, status: int, peak: int) -> None:
        """Act on the end of a launched process: by itself, killed, or together with its program."""
        command, arguments, program = launched
        is_run = command == SERVER_APP
        if not is_run and (program is None or not is_there(program)):
            return
        if status < 0 and self._killed is not None:
            end = describe_end(status, "SUPERLINK_MEMORY" if is_run else "CLIENT_MEMORY")
            self._fork(partial(self._killed, Killed(command, arguments, end, peak)))
        if command == CLIENT_APP and status < 0:
            self._restart_program(at_once=True)
        elif command == SUPEREXEC:
            self._restart_program()

    def _plan_restart(self, status: int) -> None:
        """Plan the program's restart: at once if it ended for that, else after increasing pauses."""
        now = time.monotonic()
        self._running = None
        if status == LEFT or self._at_once:
            self._start_at, self._at_once = now, False
            return
        self._quick = self._quick + 1 if now - self._started < _SOON_SECONDS else 0
        self._start_at = now + min(_LATEST_SECONDS, _AGAIN_SECONDS * 2**self._quick)

    def _restart_program(self, *, at_once: bool = False) -> None:
        self._at_once = at_once
        if self._base is not None:
            with contextlib.suppress(OSError):
                sockets.send(self._base, {"restart": True})
        elif self._running is not None:
            os.kill(self._running, signal.SIGTERM)

    def _end_runs(self) -> None:
        """End the runs' processes first, while the SuperLink can still receive how they ended."""
        runs = [p for p, launched in self._launched.items() if launched.command == SERVER_APP]
        for process in runs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        _wait_for(runs, _RUNS_SECONDS)

    def _end_program(self) -> None:
        if self._running is None:
            return
        os.kill(self._running, signal.SIGTERM)
        _wait_for([self._running], _END_SECONDS)
        end_group(self._running)


def _wait_for(children: list[int], seconds: float) -> None:
    """Wait at most ``seconds`` until these child processes have ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        children = [child for child in children if not os.waitpid(child, os.WNOHANG)[0]]
        if not children:
            return
        time.sleep(_LOOK_SECONDS)


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending
    raise SystemExit(0)
