"""Whether a SuperLink answers at an address, and is the one that this machine trusts."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from flsimulation.errors import InputError
from flsimulation.host import proxies
from flsimulation.internals.flower_words import AHEAD_SECONDS, BEHIND_SECONDS, HEALTH
from flsimulation.security.home import INSECURE, trusted_ca

_SECONDS = 15.0  # a busy machine answers late
_AGAIN_SECONDS = 1.5  # until a SuperLink that stood still, as a sleeping machine's, has the time
_ERRORS = (OSError, ValueError, http.client.HTTPException)

# Numbers of OpenSSL's reasons (X509_V_ERR_... of x509_vfy.h)
_NOT_YET, _EXPIRED, _OTHER_NAMES = 9, 10, (62, 64)


@dataclass(frozen=True)
class _Place:
    """A SuperLink's address, and how it is reached."""

    superlink: str
    ca: Path | None
    proxy: str | None

    @property
    def host(self) -> str:
        return self.superlink.rpartition(":")[0].strip("[]")


def check_answers(superlink: str, ca: Path | None) -> None:
    """Check that a SuperLink answers, for who submits.

    Parameters
    ----------
    superlink : str
        ``host:port``.
    ca : Path, optional
        The CA's certificate, which need not exist; None without TLS.

    Raises
    ------
    InputError
        If it does not answer, there is no CA's certificate, or it does not accept the SuperLink's.
    """
    place = _place(superlink, ca)
    try:
        _ask(place)
    except _ERRORS as error:
        why = _refusal(error, place) or (
            f"no SuperLink answers there{_reason(error, place)}; start one with `flsim up` or "
            "`flsim superlink`, or specify another with --superlink"
        )
        raise InputError(f"runtime.superlink {superlink}: {why}") from None


def check_accepts(superlink: str, ca: Path) -> str:
    """Check that a SuperLink which answers can be trusted, and will accept this client's requests.

    One that does not answer is no error: a client may be started first.

    Parameters
    ----------
    superlink : str
        ``host:port`` where it serves its clients.
    ca : Path
        The CA's certificate.

    Returns
    -------
    str
        Why there is no answer; "" if there is one.

    Raises
    ------
    InputError
        If its certificate is not accepted, it does not use TLS, or the clocks differ too much.
    """
    place = _place(superlink, ca)
    try:
        low, high = _ask(place)
        if _is_refused(low, high):
            time.sleep(_AGAIN_SECONDS)
            low, high = _ask(place)
    except _ERRORS as error:
        if why := _refusal(error, place):
            raise InputError(f"--superlink {superlink}: {why}") from None
        return f"no SuperLink answers at {superlink}{_reason(error, place)}"
    if _is_refused(low, high):
        raise InputError(f"--superlink {superlink}: {_clocks_differ(low, high)}")
    return ""


def _is_refused(low: float, high: float) -> bool:
    """Whether a SuperLink refuses a clock that is between so many seconds ahead of its own."""
    return low > AHEAD_SECONDS or -high > BEHIND_SECONDS


def _place(superlink: str, ca: Path | None) -> _Place:
    proxies.spare_local_names()
    return _Place(superlink, ca, proxies.proxy_for(superlink, "http" if ca is None else "https"))


def _ask(place: _Place) -> tuple[float, float]:
    """Request the SuperLink's health; returns between which seconds this clock is ahead of its."""
    scheme, handlers = ("http", list[urllib.request.BaseHandler]())
    if place.ca is not None:
        if place.proxy is None:  # said before that there is no CA
            _listens(place)
        ca = place.ca if place.ca.is_file() else trusted_ca()
        context = ssl.create_default_context(cafile=ca)
        scheme, handlers = "https", [urllib.request.HTTPSHandler(context=context)]
    handlers.append(urllib.request.ProxyHandler({scheme: place.proxy} if place.proxy else {}))
    opener, before = urllib.request.build_opener(*handlers), time.time()
    with opener.open(f"{scheme}://{place.superlink}{HEALTH}", timeout=_SECONDS) as answer:
        return _ahead(answer.headers["Date"], before, time.time())


def _listens(place: _Place) -> None:
    port = int(place.superlink.rpartition(":")[2])
    with socket.create_connection((place.host, port), _SECONDS):
        return


def _ahead(date: str | None, before: float, after: float) -> tuple[float, float]:
    """Bounds of this clock minus the server's, whose date has whole seconds, rounded down."""
    if date is None:
        return 0.0, 0.0
    there = parsedate_to_datetime(date).timestamp()
    return before - there - 1, after - there


def _clocks_differ(low: float, high: float) -> str:
    seconds = f"{low:.0f} s ahead of" if low > 0 else f"{-high:.0f} s behind"
    return (
        f"this machine's clock, {_now()}, is {seconds} the SuperLink's, which accepts "
        f"{AHEAD_SECONDS:g} s ahead and {BEHIND_SECONDS:g} s behind; set the one that is wrong "
        "(timedatectl set-ntp true)"
    )


def _refusal(error: Exception, place: _Place) -> str:
    """What is wrong with what answers; "" if nothing answers."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted with the CA {place.ca} ({reason.verify_message}); "
            f"{_remedy(reason.verify_code, place)}"
        )
    if isinstance(reason, ssl.SSLEOFError | ssl.SSLZeroReturnError):  # it has just ended
        return ""
    if isinstance(error, ssl.SSLError) or isinstance(reason, ssl.SSLError):
        return f"it does not use TLS, or is no SuperLink ({reason}); start it without {INSECURE}"
    if isinstance(error, http.client.HTTPException | ConnectionResetError) and place.ca is None:
        return f"it does not answer without TLS; unset {INSECURE}"
    return ""


def _remedy(code: int, place: _Place) -> str:
    if code in _OTHER_NAMES:
        return f"on the server's machine, flsim certs --name {place.host} adds this name"
    if code == _NOT_YET:
        return (
            f"this machine's clock says {_now()}: set it, or that of the server's machine and then "
            "flsim certs --renew there"
        )
    if code == _EXPIRED:
        return f"if this machine's clock, {_now()}, is right: flsim certs --renew on the server's"
    return "flsim certs --export ca.pem on the server's machine and FLSIM_CA=ca.pem trust its CA"


def _reason(error: Exception, place: _Place) -> str:
    reason = getattr(error, "reason", error)
    if place.proxy is None:
        return f" ({reason})"
    shown = proxies.without_password(place.proxy)
    return (
        f" through the proxy {shown} of the environment ({reason}); no_proxy={place.host} avoids it"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
