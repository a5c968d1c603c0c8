"""What a client finds out about its SuperLink before it joins: certificate, name, clocks, proxy."""

from __future__ import annotations

import datetime
import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from flsimulation.errors import InputError
from flsimulation.internals.flower_words import KEY, LINK, ROOTS
from flsimulation.node.explained import explained
from flsimulation.runtimes.network.answering import check_accepts
from flsimulation.security.certificates import make_ca, make_server
from flsimulation.security.issuing import utc_now
from flsimulation.security.keys import ensure_key, fingerprint


@contextmanager
def superlink(
    folder: Path, *, made: float = 0.0, clock: float | list[float] = 0.0
) -> Iterator[str]:
    """``127.0.0.1:port`` of what answers as a SuperLink does.

    Parameters
    ----------
    folder : Path
        Has the CA's certificate, ``ca.pem``, afterwards.
    made : float
        When its certificates were made, in seconds from now.
    clock : float or list of float
        Its clock, in seconds from this one; of each answer, the last one is kept.
    """
    clocks = clock if isinstance(clock, list) else [clock]

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            ahead = clocks.pop(0) if len(clocks) > 1 else clocks[0]
            return formatdate(time() + ahead, usegmt=True)

        def log_message(self, format: str, *args: object) -> None: ...

    now = utc_now() + datetime.timedelta(seconds=made)
    ca = make_ca(now)
    ca.write(folder / "ca.pem", folder / "ca.key")
    make_server(ca, ["127.0.0.1", "server.example"], now).write(
        folder / "server.pem", folder / "server.key"
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("clock", "said"),
    [
        (600, r"this machine's clock, .* UTC, is (59|60)\d s behind the SuperLink's, which"),
        (
            -600,
            r"this machine's clock, .* is (59|60)\d s ahead of .*accepts 5 s ahead and 305 s behi",
        ),
        (180, None),
        (-3, None),
        ([-600, 0], None),  # it stood still, as a virtual machine does at times
    ],
)
def test_clocks_that_would_be_refused_are_named(
    tmp_path: Path, clock: float | list[float], said: str | None
) -> None:
    with superlink(tmp_path, clock=clock) as address:
        if said is None:
            assert check_accepts(address, tmp_path / "ca.pem") == ""
            return
        with pytest.raises(InputError, match=f"--superlink {address}: {said}.*timedatectl"):
            check_accepts(address, tmp_path / "ca.pem")


def test_a_superlink_that_ends_while_it_is_asked_is_one_that_does_not_answer(
    tmp_path: Path,
) -> None:
    make_ca(utc_now()).write(tmp_path / "ca.pem", tmp_path / "ca.key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            server.accept()[0].close()  # it is asked first whether it listens
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=hang_up)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        why = check_accepts(address, tmp_path / "ca.pem")
        thread.join()
    assert why.startswith(f"no SuperLink answers at {address} (")
    assert "EOF" in why


def test_certificates_of_a_clock_ten_minutes_ahead_are_valid_and_of_two_hours_name_the_clock(
    tmp_path: Path,
) -> None:
    with superlink(tmp_path, made=600) as address:
        assert check_accepts(address, tmp_path / "ca.pem") == ""
    said = r"\(certificate is not yet valid\); this machine's clock says .* UTC: set it, or that of"
    with superlink(tmp_path, made=7200) as address, pytest.raises(InputError, match=said):
        check_accepts(address, tmp_path / "ca.pem")


def test_a_name_that_the_certificate_lacks_is_named_with_the_command_that_adds_it(
    tmp_path: Path,
) -> None:
    said = "Hostname mismatch.*on the server's machine, flsim certs --name localhost adds this name"
    with superlink(tmp_path) as address, pytest.raises(InputError, match=said):
        check_accepts(address.replace("127.0.0.1", "localhost"), tmp_path / "ca.pem")


@contextmanager
def connecting(address: str) -> Iterator[tuple[int, list[str]]]:
    """Port of an HTTP proxy that passes every CONNECT to one address, and the addresses asked for."""
    asked: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port))) as other:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=pump, args=(other, self.connection))
                back.start()
                pump(self.connection, other)
                back.join()

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)


class TestProxies:
    @pytest.fixture
    def proxy(self, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Callable[[str], str]:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name.upper(), raising=False)

        def use(scheme: str) -> str:
            monkeypatch.setenv("https_proxy", f"{scheme}://user:secret@127.0.0.1:{free_port}")
            return f"{scheme}://127.0.0.1:{free_port}"

        return use

    def test_this_machine_is_reached_without_it(self, proxy: Callable[[str], str], tmp_path: Path):
        proxy("http")
        with superlink(tmp_path) as address:
            assert check_accepts(address, tmp_path / "ca.pem") == ""

    def test_one_that_passes_connect_is_used(
        self, proxy: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        proxy("http")
        with superlink(tmp_path) as address, connecting(address) as (port, asked):
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
            assert check_accepts("server.example:8081", tmp_path / "ca.pem") == ""
        assert asked == ["server.example:8081"]

    def test_one_that_fails_is_named_without_its_password(
        self, proxy: Callable[[str], str], tmp_path: Path
    ):
        shown = proxy("http")
        make_ca(utc_now()).write(tmp_path / "ca.pem", tmp_path / "ca.key")
        said = check_accepts("server.example:8081", tmp_path / "ca.pem")
        begin = f"no SuperLink answers at server.example:8081 through the proxy {shown} of the"
        assert said.startswith(begin)
        assert said.endswith("; no_proxy=server.example avoids it")

    def test_socks_is_refused(self, proxy: Callable[[str], str], tmp_path: Path):
        shown = proxy("socks5")
        with pytest.raises(InputError, match=f"^https_proxy {shown}: a SOCKS proxy cannot be used"):
            check_accepts("server.example:8081", tmp_path / "ca.pem")


@pytest.mark.parametrize("status", [0, 1])
def test_a_supernode_that_is_refused_says_how_its_key_is_admitted(
    tmp_path: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "berlin.key"
    shown = fingerprint(ensure_key(key))

    def end() -> None:
        raise SystemExit(status)

    with superlink(tmp_path) as address:
        arguments = [LINK, address, ROOTS, str(tmp_path / "ca.pem"), KEY, str(key)]
        with pytest.raises(SystemExit):
            explained(end, arguments)
    printed = capsys.readouterr().out
    assert (f"refuses the key {shown}" in printed) == bool(status)
    assert ("flsim admit berlin berlin.pub" in printed) == bool(status)
