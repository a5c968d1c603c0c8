"""``python -m flsimulation.node SOCKET ROLE ARGUMENTS``: the warm server of a container.

The arguments are those of Flower's long-running program: its SuperNode or its SuperLink.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from flsimulation.host.processes import end_with_parent
from flsimulation.internals.flower_words import COMMANDS, SUPERLINK, SUPERNODE
from flsimulation.internals.slow_imports import defer_slow_imports
from flsimulation.node import sockets
from flsimulation.runtimes.network.names import REPORTS


def tell_up() -> None:
    """Report that the container's program is up."""
    with contextlib.suppress(OSError):
        sockets.send(os.environ[REPORTS], {"up": True})


def main() -> None:
    """Import what the role needs, then serve."""
    end_with_parent()  # before imports that take seconds
    path, role, *arguments = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches our parent, which ends us
    defer_slow_imports()  # a third of a client's memory
    from flsimulation.internals import flower_processes
    from flsimulation.node import (
        allowed,
        client_app,
        explained,
        flower_patches,
        shims,
        threads,
        waits,
        warm,
    )

    def keep(command: str, *more: str) -> None:
        end_with_parent()
        shims.run_command(command, [*arguments, *more])

    def run_supernode() -> None:
        port = sockets.free_port()  # at each start: another program may have taken the last one
        keep(SUPERNODE, "--port", str(port))

    threads.hold()
    waits.shorten_pulls()
    flower_patches.send_heartbeats_often()
    import_module("httpcore")  # httpx imports it only for its first client
    for command in COMMANDS[role]:
        import_module(command)
    if role == "client":
        allowed.import_only_allowed()
        flower_processes.run_app(client_app.app)
        watch, beating = flower_patches.RunWatch(), flower_patches.leave_without_heartbeats()

        def look() -> None:
            beating()
            watch.look()

        waits.shorten_looks(look)
        flower_patches.leave_with_run(watch)
        flower_patches.leave_with_lost_answer()
        server = warm.WarmServer(
            Path(path),
            lambda: explained.explained(run_supernode, arguments),
            client_app.prepare,
            client_app.tell_killed,
            serving=tell_up,
        )
    else:
        from flsimulation.node import gate, server_app

        server_app.log.follow()
        flower_patches.list_nodes_heard_lately()
        flower_patches.let_killed_nodes_return()
        flower_patches.give_lost_messages_again()
        gate.serve_clients_apart()
        server = warm.WarmServer(
            Path(path),
            lambda: keep(SUPERLINK),
            killed=server_app.tell_killed,
            serving=tell_up,
        )
    server.serve()


if __name__ == "__main__":
    main()
    os._exit(0)  # do not wait for threads
