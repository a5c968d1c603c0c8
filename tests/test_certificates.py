"""Certificates of a network: what they say, how long, who can read the keys, renewal, an own CA."""

from __future__ import annotations

import datetime
import math
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry

from flsimulation.errors import InputError
from flsimulation.node.joining import make_key
from flsimulation.node.serving import show_certificates
from flsimulation.security import issuing, keys
from flsimulation.security.certificates import days_left, make_ca, make_server, names_of, pem_of
from flsimulation.security.certificates import read_certificate as read
from flsimulation.security.home import Home, is_insecure, trusted_ca

NOW = datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_the_first_start_makes_a_ca_and_a_certificate_with_the_servers_names(home: Home) -> None:
    assert issuing.ensure(home, ["server.example", "10.1.2.3"], now=NOW) == "made"
    ca, server = read(home.ca), read(home.server)
    here = socket.gethostname()
    assert names_of(server) == [
        *("superlink", "control", "localhost", "127.0.0.1", "::1", here),
        *("server.example", "10.1.2.3"),
    ]
    assert (days_left(ca, NOW), days_left(server, NOW)) == (3650, 397)
    assert server.not_valid_before_utc == NOW - DAY / 24
    server.verify_directly_issued_by(ca)
    limits = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign) == (True, False)


def test_keys_are_their_owners_alone_and_never_beside_what_is_public(home: Home) -> None:
    issuing.ensure(home, now=NOW)
    keys.ensure_key(home.key("berlin"))
    private = [path for path in home.folder.rglob("*") if b"PRIVATE" in _content(path)]
    assert {path.relative_to(home.folder).as_posix() for path in private} == {
        *("ca/ca.key", "server/server.key", "keys/berlin.key"),
    }
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


@pytest.mark.parametrize(
    ("later", "names", "renew", "done"),
    [
        (366 * DAY, [], False, ""),
        (368 * DAY, [], False, "renewed"),
        (400 * DAY, [], False, "renewed"),
        (0 * DAY, [], True, "renewed"),
        (0 * DAY, ["b.example"], False, "renewed"),
        (0 * DAY, ["a.example"], False, ""),
    ],
)
def test_a_certificate_is_renewed_when_due_and_keeps_its_names(
    home: Home, later: datetime.timedelta, names: list[str], renew: bool, done: str
) -> None:
    issuing.ensure(home, ["a.example"], now=NOW)
    before, ca = read(home.server), home.ca.read_bytes()
    assert issuing.ensure(home, names, renew=renew, now=NOW + later) == done
    assert (read(home.server) == before) == (done == "")
    assert home.ca.read_bytes() == ca
    assert {"a.example", *names} <= set(names_of(read(home.server)))
    if done:
        assert days_left(read(home.server), NOW + later) == 397


def test_an_own_ca_signs_from_then_on(home: Home, tmp_path: Path) -> None:
    issuing.ensure(home, now=NOW)
    own = make_ca(NOW)
    own.write(tmp_path / "own.pem", tmp_path / "own.key")
    issuing.bring_ca(home, tmp_path / "own.pem", tmp_path / "own.key")
    assert issuing.ensure(home, now=NOW) == "renewed"
    read(home.server).verify_directly_issued_by(own.certificate)


def test_a_certificate_of_an_own_ca_needs_no_key_of_that_ca(home: Home, tmp_path: Path) -> None:
    issuing.ensure(home, now=NOW)
    own = make_ca(NOW)
    own.write(tmp_path / "ca.pem", tmp_path / "ca.key")
    server = make_server(own, ["server.example"], NOW)
    server.write(tmp_path / "s.pem", tmp_path / "s.key")
    issuing.bring_server(home, tmp_path / "ca.pem", tmp_path / "s.pem", tmp_path / "s.key")
    assert not home.ca_key.exists()
    assert home.server_key.stat().st_mode & 0o777 == 0o600
    assert issuing.ensure(home, now=NOW + 390 * DAY) == ""  # it is not ours to renew
    with pytest.raises(InputError, match=r"ca\.key: the CA's key is not here"):
        issuing.ensure(home, renew=True, now=NOW)


def test_files_that_do_not_belong_together_are_refused(home: Home, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_ca(NOW).write(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
    a, b = tmp_path / "a.pem", tmp_path / "b.key"
    with pytest.raises(InputError, match=r"b\.key: is not the key of the certificate"):
        issuing.bring_ca(home, a, b)
    server = make_server(make_ca(NOW), ["x"], NOW)
    server.write(tmp_path / "s.pem", tmp_path / "s.key")
    with pytest.raises(InputError, match=r"s\.pem: is not signed by the CA"):
        issuing.bring_server(home, a, tmp_path / "s.pem", tmp_path / "s.key")
    with pytest.raises(InputError, match=r"s\.pem: is not the certificate of a CA"):
        issuing.bring_ca(home, tmp_path / "s.pem", tmp_path / "s.key")
    with pytest.raises(InputError, match=r"--name 'a b' must be a DNS name or an IP address"):
        make_server(make_ca(NOW), ["a b"], NOW)
    assert not home.ca.exists()


@pytest.mark.parametrize(
    ("trusted", "name", "age", "error"),
    [
        ("ca", "127.0.0.1", 0, None),
        ("ca", "superlink", 0, None),
        ("other", "127.0.0.1", 0, "unable to get local issuer certificate|self-signed"),
        ("ca", "other.example", 0, "mismatch|not valid for"),
        ("ca", "127.0.0.1", 400, "certificate has expired"),
    ],
)
def test_a_tls_client_accepts_the_right_ca_name_and_time_only(
    home: Home, tmp_path: Path, trusted: str, name: str, age: int, error: str | None
) -> None:
    issuing.ensure(home, now=issuing.utc_now() - age * DAY)
    make_ca(NOW).write(tmp_path / "other.pem", tmp_path / "other.key")
    context = ssl.create_default_context(
        cafile=home.ca if trusted == "ca" else tmp_path / "other.pem"
    )
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
    ours, theirs = socket.socketpair()
    answering = threading.Thread(target=_answer, args=(home, theirs))
    answering.start()
    try:
        if error is None:
            with context.wrap_socket(ours, server_hostname=name) as tls:
                assert tls.version() == "TLSv1.3"
        else:
            with pytest.raises(ssl.SSLCertVerificationError, match=error):
                context.wrap_socket(ours, server_hostname=name)
    finally:
        ours.close()
        answering.join()


def _answer(home: Home, connection: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.server, home.server_key)
    try:
        context.wrap_socket(connection, server_side=True).close()
    except OSError:
        connection.close()


def test_what_is_shown_names_both_with_fingerprint_and_end(home: Home) -> None:
    issuing.ensure(home, now=NOW)
    lines = issuing.describe(home, NOW)
    assert lines[0] == f"CA          {home.ca}"
    assert lines[1].strip() == "valid until 2036-01-29, 3650 days"
    assert len(lines[2].strip().split(":")) == 32
    assert lines[4].strip() == "valid until 2027-03-04, 397 days"
    assert issuing.describe(home, NOW + 400 * DAY)[4].strip() == "EXPIRED on 2027-03-04"


def test_a_clients_key_stays_and_its_fingerprint_is_that_of_openssh(home: Home) -> None:
    public = keys.ensure_key(home.key("berlin"))
    assert keys.ensure_key(home.key("berlin")) == public
    assert public.startswith("ecdsa-sha2-nistp384 ")
    file = home.folder / "berlin.pub"
    file.write_text(public)
    shown = subprocess.run(["ssh-keygen", "-lf", file], capture_output=True, text=True, check=True)
    assert keys.fingerprint(public) == shown.stdout.split()[1]
    home.key("berlin").chmod(0o644)
    with pytest.raises(InputError, match=r"berlin\.key: others can read this private key"):
        keys.ensure_key(home.key("berlin"))


def test_only_keys_on_nist_curves_are_public_keys_here(tmp_path: Path) -> None:
    make = ["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", str(tmp_path / "k")]
    subprocess.run(make, check=True)
    with pytest.raises(InputError, match=r"k\.pub: must be a key on a NIST curve"):
        keys.public_of((tmp_path / "k.pub").read_text(), "k.pub")
    with pytest.raises(InputError, match=r"k: is not a public key"):
        keys.public_of(pem_of(ec.generate_private_key(ec.SECP256R1())).decode(), "k")


def test_the_environment_names_the_ca_or_turns_tls_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLSIM_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"trust/ca\.pem: no such CA certificate; get it from"):
        trusted_ca()
    monkeypatch.setenv("FLSIM_CA", str(tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").touch()
    assert trusted_ca() == tmp_path / "ca.pem"
    for value, off in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv("FLSIM_INSECURE", value)
        assert is_insecure() == off
    monkeypatch.setenv("FLSIM_INSECURE", "yes")
    with pytest.raises(InputError, match="FLSIM_INSECURE must be 0 or 1, got 'yes'"):
        is_insecure()


@pytest.mark.parametrize("what", ["the key", "the public key"])
def test_where_a_key_cannot_be_written_the_remedy_is_named(
    what: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLSIM_HOME", str(home.folder))
    if what == "the key":
        home.folder.write_text("no folder")
        said = (
            r"/keys/a\.key: the client's key cannot be written \(.*\); set FLSIM_HOME to a folder"
        )
    else:
        monkeypatch.chdir("/proc")
        said = r"^a\.pub: cannot be written in this folder \(.*\); run the command in another one"
    with pytest.raises(InputError, match=said):
        make_key("a")


def test_the_days_that_certificates_have_left_are_a_metric(home: Home) -> None:
    registry = CollectorRegistry()
    show_certificates(home, registry)

    def days(certificate: str) -> float:
        labels = {"certificate": certificate}
        found = registry.get_sample_value("fl_certificate_remaining_seconds", labels)
        assert found is not None
        return found / 86400

    assert math.isnan(days("ca"))
    assert math.isnan(days("superlink"))
    issuing.ensure(home)
    assert days("ca") == pytest.approx(3650, abs=0.1)
    assert days("superlink") == pytest.approx(397, abs=0.1)
    issuing.ensure(home, renew=True, now=issuing.utc_now() - 100 * DAY)
    assert days("superlink") == pytest.approx(297, abs=0.1)
