"""Whether a SuperLink answers at an address, and is the one that this machine trusts."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.request
from pathlib import Path

from flsimulation.errors import InputError
from flsimulation.internals.flower_words import HEALTH
from flsimulation.security.home import INSECURE, trusted_ca

_SECONDS = 5.0


def check_answers(superlink: str, ca: Path | None) -> None:
    """Check that a SuperLink answers.

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
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]  # directly
    try:
        if ca is not None:
            _listens(superlink)
            context = ssl.create_default_context(cafile=ca if ca.is_file() else trusted_ca())
            handlers.append(urllib.request.HTTPSHandler(context=context))
        url = f"{'http' if ca is None else 'https'}://{superlink}{HEALTH}"
        with urllib.request.build_opener(*handlers).open(url, timeout=_SECONDS):
            return
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"runtime.superlink {superlink}: {_why(error, ca)}") from None


def _listens(superlink: str) -> None:
    host, _, port = superlink.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), _SECONDS):
        return


def _why(error: Exception, ca: Path | None) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted with the CA {ca} ({reason.verify_message}); "
            "flsim certs shows it, flsim certs --export ca.pem and FLSIM_CA=ca.pem trust its CA"
        )
    if isinstance(error, ssl.SSLError) or isinstance(reason, ssl.SSLError):
        return f"it does not use TLS ({error}); start it without {INSECURE}"
    if isinstance(error, http.client.HTTPException | ConnectionResetError) and ca is None:
        return f"it does not answer without TLS; unset {INSECURE}"
    return (
        f"no SuperLink answers there ({reason}); start one with `flsim up` or `flsim superlink`, or "
        "specify another with --superlink"
    )
