"""The certificates of a network in their folder: made, renewed, brought, described."""

from __future__ import annotations

import datetime
import math
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from flsimulation.errors import InputError
from flsimulation.host.files import write_atomic
from flsimulation.host.proxies import LOCAL
from flsimulation.security.certificates import (
    RENEW_DAYS,
    Signed,
    check_is_ca,
    check_pair,
    check_signed,
    days_left,
    fingerprint_of,
    make_ca,
    make_server,
    names_of,
    read_certificate,
    read_key,
)
from flsimulation.security.home import Home


def utc_now() -> datetime.datetime:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def own_names(*, container: bool) -> list[str]:
    """Names by which a SuperLink is reached on this machine; a container's host name is not one."""
    return list(LOCAL) if container else list(dict.fromkeys([*LOCAL, socket.gethostname()]))


def ensure(
    home: Home,
    names: Sequence[str] = (),
    *,
    renew: bool = False,
    container: bool = False,
    now: datetime.datetime | None = None,
) -> str:
    """Make the certificates that are missing, and a new one of the server where it is due.

    The names of the earlier certificate are kept. It is due if fewer than `RENEW_DAYS` are left, if
    the CA is another one, or if a name is missing.

    Parameters
    ----------
    home : Home
        Where they are stored.
    names : sequence of str
        More names of the server.
    renew : bool
        Whether to make a new one of the server in any case.
    container : bool
        Whether this is a container that makes them for another one.
    now : datetime, optional
        The time, with a zone; by default the clock's.

    Returns
    -------
    str
        What was done: ``made``, ``renewed``, or "" for nothing.

    Raises
    ------
    InputError
        If the server's certificate is due and the CA's key is not here.
    """
    now = now or utc_now()
    if not home.ca.is_file():
        make_ca(now).write(home.ca, home.ca_key)
    home.waiting.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys([*_names(home), *own_names(container=container), *names]))
    is_new = not (home.server.is_file() and home.server_key.is_file())
    if not (is_new or renew or _is_due(home, names, now)):
        return ""
    make_server(_signer(home), wanted, now).write(home.server, home.server_key)
    return "made" if is_new else "renewed"


def _names(home: Home) -> list[str]:
    return names_of(read_certificate(home.server)) if home.server.is_file() else []


def _is_due(home: Home, names: Iterable[str], now: datetime.datetime) -> bool:
    server, ca = read_certificate(home.server), read_certificate(home.ca)
    if not set(names) <= set(names_of(server)):
        return True
    try:
        check_signed(server, ca, home.server)
    except InputError:
        return True
    return days_left(server, now) < RENEW_DAYS and home.ca_key.is_file()


def _signer(home: Home) -> Signed:
    if not home.ca_key.is_file():
        raise InputError(
            f"{home.ca_key}: the CA's key is not here, so that no certificate can be made; "
            f"bring one with --cert, --key and --ca-cert"
        )
    return Signed(read_certificate(home.ca), read_key(home.ca_key))


def bring_ca(home: Home, certificate: Path, key: Path) -> None:
    """Use a CA of one's own, which signs the server's certificate from now on.

    Raises
    ------
    InputError
        If the two files are not a CA's certificate and its key.
    """
    ca = Signed(read_certificate(certificate), read_key(key))
    check_is_ca(ca.certificate, certificate)
    check_pair(ca.certificate, ca.key, key)
    ca.write(home.ca, home.ca_key)


def bring_server(home: Home, ca: Path, certificate: Path, key: Path) -> None:
    """Use a server's certificate that another CA signed; that CA's key is not needed.

    Raises
    ------
    InputError
        If the files do not belong together, or the certificate has no names.
    """
    server = Signed(read_certificate(certificate), read_key(key))
    check_pair(server.certificate, server.key, key)
    check_signed(server.certificate, read_certificate(ca), certificate)
    if not names_of(server.certificate):
        raise InputError(f"{certificate}: has no names (subjectAltName); sign one that has")
    for path in (home.ca, home.server, home.waiting / "_"):
        path.parent.mkdir(parents=True, exist_ok=True)
    home.ca_key.unlink(missing_ok=True)
    write_atomic(home.ca, ca.read_bytes())
    write_atomic(home.server_key, key.read_bytes(), mode=0o600)
    write_atomic(home.server, certificate.read_bytes())  # with those between it and the CA


def seconds_left(path: Path) -> float:
    """Seconds until the certificate in a file expires; NaN if there is none."""
    try:
        return days_left(read_certificate(path), utc_now()) * 86400
    except InputError:
        return math.nan


def describe(home: Home, now: datetime.datetime | None = None) -> list[str]:
    """One line each: the CA and the server's certificate, with fingerprints, ends and names."""
    now, lines = now or utc_now(), []
    for title, path in (("CA", home.ca), ("SuperLink", home.server)):
        if not path.is_file():
            continue
        found = read_certificate(path)
        until, left = f"{found.not_valid_after_utc:%Y-%m-%d}", days_left(found, now)
        state = f"valid until {until}, {left:.0f} days" if left > 0 else f"EXPIRED on {until}"
        lines += [f"{title:<12}{path}", f"{'':<12}{state}", f"{'':<12}{fingerprint_of(found)}"]
        if names := names_of(found):
            lines.append(f"{'':<12}{', '.join(names)}")
    return lines


def hand_over(home: Home, user: int, group: int) -> None:
    """Make a user the owner of the server's key, and let every user's clients wait.

    For a container that starts as root and makes what another, which is not root, reads.
    """
    os.chown(home.server_key, user, group)
    for folder in (home.waiting, *(path.parent for path in home.apart_at(0).values())):
        folder.chmod(0o777)  # of any user
