"""Serving a registry to Prometheus."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from flsimulation.errors import InputError


@contextlib.contextmanager
def served(registry: CollectorRegistry, port: int, reader: str | None = None) -> Iterator[None]:
    """Serve ``/metrics`` on a port of the loopback address inside the block.

    Parameters
    ----------
    registry : CollectorRegistry
        The metrics.
    port : int
        The port.
    reader : str, optional
        Name or address of another host that may read them, too. They are then served at all
        addresses, and connections of any other host are closed.

    Raises
    ------
    InputError
        If the port is not available.
    """
    address = "127.0.0.1" if reader is None else "0.0.0.0"  # noqa: S104 - others are refused
    try:
        server, thread = start_http_server(port, addr=address, registry=registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--metrics-port {port}: cannot listen on {address}:{port} ({reason}); "
            f"choose another port, or end the program that has it"
        ) from None
    if reader is not None:
        vars(server)["verify_request"] = lambda _, client: may_read(client[0], reader)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def may_read(address: str, reader: str) -> bool:
    """Whether a client's address is the loopback's, or one that the reader's name has now."""
    if ipaddress.ip_address(address).is_loopback:
        return True
    try:
        found: list[Any] = socket.getaddrinfo(reader, None, socket.AF_INET)
    except OSError:
        return False
    return address in {place[4][0] for place in found}
