"""The SuperLink's two addresses: one for its clients, and one that also submits and stops runs.

Flower's SuperLink serves everything at one address. Here the clients have another one, in the same
process, that passes the paths that a client needs and refuses all others; docs/decisions/0034.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import uvicorn

from flsimulation.internals import flower_superlink
from flsimulation.internals.flower_superlink import Nodes
from flsimulation.internals.flower_words import CLIENT_PATHS, HEALTH
from flsimulation.node.admission import Admission, make_writable_like, register_beside
from flsimulation.runtimes.network.names import ADMITTED, CLIENTS, MEMORY
from flsimulation.security.home import home, is_insecure

T = TypeVar("T")
Receive: TypeAlias = Callable[[], Awaitable[Any]]
App: TypeAlias = Callable[[dict[str, Any], Receive, Any], Awaitable[None]]

_LOOK_SECONDS = 1.0  # between two looks at the register, those who wait, and the certificate
_STARTED_SECONDS = 0.05
_LARGEST_BODY = 64 * 2**20  # bytes; Flower sends a message's parts one by one, in pieces of 5 MiB


class ClientsOnly:
    """An ASGI app that passes a client's requests to another one, and answers others with 404.

    Parameters
    ----------
    app : callable
        The SuperLink's app.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass or refuse a request."""
        if scope["type"] != "http":
            return
        if scope["path"] in CLIENT_PATHS or scope["path"] == HEALTH:
            if (body := await _read(receive)) is not None:
                await self._app(scope, _again(body, receive), send)
            return
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"not for clients\n"})


async def _read(receive: Receive) -> bytes | None:
    """A request's body; None if it is too large, or the client hung up: Flower logs that as an error of its own.

    Flower reads the whole body before it looks who sent it.
    """
    parts, size, has_more = list[bytes](), 0, True
    while has_more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if message["type"] == "http.disconnect" or size > _LARGEST_BODY:
            return None
        has_more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read, then what follows it."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return first.pop() if first else await receive()

    return again


def serve_clients_apart() -> None:
    """Make the SuperLink that is forked from this process serve its clients at their own address."""
    flower_superlink.check_senders()
    flower_superlink.serve_by(serve)


def serve(app: App, options: dict[str, Any]) -> None:
    """Serve both addresses until the program is ended; admit clients, renew the certificate."""
    host, _, port = os.environ[CLIENTS].rpartition(":")
    gate = {**options, "app": ClientsOnly(app), "host": host, "port": int(port), "lifespan": "off"}
    # "off": the SuperLink's programs are started once, by the other address
    clients = uvicorn.Server(uvicorn.Config(**gate))
    everything = uvicorn.Server(uvicorn.Config(app, **options))
    threading.Thread(target=_serve_clients, args=(clients, everything), daemon=True).start()
    threading.Thread(target=_look_after, args=(app, [clients, everything]), daemon=True).start()
    try:
        everything.run()
    finally:
        clients.should_exit = True


def _serve_clients(clients: uvicorn.Server, everything: uvicorn.Server) -> None:
    """Serve the clients from when everything is served; end both if that is not possible."""
    while not everything.started:
        time.sleep(_STARTED_SECONDS)
    try:
        clients.run()
    finally:
        everything.should_exit = True


def _look_after(app: App, servers: list[uvicorn.Server]) -> None:
    if is_insecure():
        return
    looks: list[Callable[[], object]] | None = None
    while True:
        looks = looks or _attempt(partial(_looks, app, servers))
        for look in looks or ():
            _attempt(look)
        time.sleep(_LOOK_SECONDS)


def _attempt(work: Callable[[], T]) -> T | None:
    """What ``work`` returns; None after an error, as of a full disk or a damaged file."""
    try:
        return work()
    except Exception as error:
        with contextlib.suppress(OSError):  # the log may be on the disk that is full
            print(f"flsim: {error}", flush=True)
        time.sleep(10 * _LOOK_SECONDS)
        return None


def _looks(app: App, servers: list[uvicorn.Server]) -> list[Callable[[], object]]:
    """What is to be looked after again and again."""
    port = servers[0].config.port
    folder, apart = home().waiting_at(port), home().apart_at(port)
    names = os.environ.get(ADMITTED) or ".*"
    admission = Admission(register_beside(os.environ[MEMORY]), folder, Nodes(app), apart, names)
    return [
        *(partial(make_writable_like, f, f.parent) for f in (folder, *apart.values())),
        admission.look,
        Renewal(servers).look,
    ]


class Renewal:
    """Lets servers use a renewed certificate for new connections.

    Parameters
    ----------
    servers : list of uvicorn.Server
        Servers with the certificate of this machine's SuperLink.
    """

    def __init__(self, servers: list[uvicorn.Server]) -> None:
        self._servers = servers
        self._seen = self._stamp()

    def look(self) -> None:
        """Load the certificate if it is another one."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        place = home()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(place.server, place.server_key)
        except ssl.SSLError:  # of one pair and of another: the second file is being written
            return
        for server in self._servers:
            if server.config.ssl is not None:
                server.config.ssl.load_cert_chain(place.server, place.server_key)
        self._seen = stamp
        print("flsim: the SuperLink's certificate was renewed, and is used from now on", flush=True)

    @staticmethod
    def _stamp() -> tuple[int, int]:
        place = home()
        return place.server.stat().st_mtime_ns, place.server_key.stat().st_mtime_ns
