"""The health check of a container: its metrics, and a SuperLink that clients would accept."""

from __future__ import annotations

import datetime
import http.server
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flsimulation.node import healthy
from flsimulation.security import issuing
from flsimulation.security.home import Home


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.says)  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


def serve(says: bytes, context: ssl.SSLContext | None = None) -> http.server.HTTPServer:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Answer)
    server.says = says  # type: ignore[attr-defined]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def superlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Home]]:
    home = Home(tmp_path)
    monkeypatch.setenv("FLSIM_HOME", str(tmp_path))
    issuing.ensure(home)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.server, home.server_key)
    server = serve(b"ok", context)
    yield f"127.0.0.1:{server.server_port}", home
    server.shutdown()
    server.server_close()


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    server = serve(b"fl_container_failing 0.0\n")
    monkeypatch.setattr(healthy, "_METRICS", f"http://127.0.0.1:{server.server_port}/metrics")
    yield server
    server.shutdown()
    server.server_close()


def test_a_superlink_is_healthy_if_its_clients_accept_it(
    superlink: tuple[str, Home],
    metrics: http.server.HTTPServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, home = superlink
    monkeypatch.setattr("sys.argv", ["healthy", address])
    healthy.main()
    other = Home(home.folder / "other")
    issuing.ensure(other)
    monkeypatch.setenv("FLSIM_CA", str(other.ca))
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        healthy.main()


def test_an_expired_certificate_is_not_healthy(
    tmp_path: Path, metrics: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    monkeypatch.setenv("FLSIM_HOME", str(tmp_path))
    issuing.ensure(home, now=issuing.utc_now() - datetime.timedelta(days=400))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.server, home.server_key)
    server = serve(b"ok", context)
    monkeypatch.setattr("sys.argv", ["healthy", f"127.0.0.1:{server.server_port}"])
    with pytest.raises(OSError, match="certificate has expired"):
        healthy.main()
    server.shutdown()
    server.server_close()


def test_a_container_that_cannot_work_is_not_healthy(
    metrics: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["healthy"])
    healthy.main()
    metrics.says = b"fl_container_failing 1.0\n"  # type: ignore[attr-defined]
    with pytest.raises(SystemExit, match="its programs do not run"):
        healthy.main()


def test_the_check_of_each_five_seconds_imports_nothing_slow(tmp_path: Path) -> None:
    program = "import sys, flsimulation.node.healthy; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ)
    )
    slow = {"torch", "flwr", "numpy", "cryptography", "prometheus_client", "pydantic"}
    assert slow & set(done.stdout.split()) == set()
