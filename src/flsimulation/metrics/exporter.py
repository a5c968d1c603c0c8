"""Serving a registry to Prometheus."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server

from flsimulation.errors import InputError


@contextlib.contextmanager
def served(registry: CollectorRegistry, port: int, address: str = "127.0.0.1") -> Iterator[None]:
    """Serve ``/metrics`` on a port inside the block.

    Raises
    ------
    InputError
        If the port is not available.
    """
    try:
        server, thread = start_http_server(port, addr=address, registry=registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--metrics-port {port}: cannot listen on {address}:{port} ({reason}); "
            f"choose another port, or end the program that has it"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
