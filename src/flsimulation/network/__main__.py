"""``python -m flsimulation.network SOCKET ROLE``: the process that a container's others fork from."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Import what the role needs, then serve."""
    path, role = sys.argv[1:]
    from flsimulation.network import client_app, threads, waits, warm

    threads.hold()
    waits.shorten_pulls()
    import_module("httpcore")  # httpx imports it only with its first client
    import_module("flwr.supercore.cli")
    if role == "client":
        import_module("flwr.supernode.cli")
        server = warm.WarmServer(Path(path), client_app.prepare, client_app.killed)
    else:
        import_module("flwr.superlink.cli")
        import_module("flsimulation.network.server_app")
        server = warm.WarmServer(Path(path))
    server.serve()


if __name__ == "__main__":
    main()
