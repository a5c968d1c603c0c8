"""The HTTP proxy in the environment (``https_proxy``, ``no_proxy``), which Flower's programs use, too."""

from __future__ import annotations

import os
import urllib.parse
import urllib.request

from flsimulation.errors import InputError

LOCAL = ("superlink", "control", "localhost", "127.0.0.1", "::1")
"""Names of a SuperLink in its container network and on its own machine: no proxy knows them."""


def spare_local_names() -> None:
    """Let this process, and those that it starts, reach `LOCAL` without the environment's proxy.

    A client's own programs speak to each other over loopback: a proxy would not let them.
    """
    found = urllib.request.getproxies_environment()
    spared = [name.strip() for name in found.get("no", "").split(",") if name.strip()]
    if set(found) - {"no"} and "*" not in spared:
        os.environ["no_proxy"] = ",".join(dict.fromkeys([*spared, *LOCAL]))


def proxy_for(address: str, scheme: str) -> str | None:
    """The environment's proxy by which an address is reached; None if it is reached directly.

    Parameters
    ----------
    address : str
        ``host:port``.
    scheme : str
        ``http`` or ``https``.

    Raises
    ------
    InputError
        If the environment names a SOCKS proxy, with which Flower's programs do not start.
    """
    found = urllib.request.getproxies_environment()
    for name in ("http", "https", "all"):
        if found.get(name, "").startswith("socks"):
            raise InputError(
                f"{name}_proxy {without_password(found[name])}: a SOCKS proxy cannot be used; "
                f"unset it, or name an HTTP proxy that passes CONNECT"
            )
    if urllib.request.proxy_bypass_environment(address):  # type: ignore[attr-defined]
        return None
    return found.get(scheme) or found.get("all")


def without_password(proxy: str) -> str:
    """A proxy's address without a user's name and password, for people to read."""
    parts = urllib.parse.urlsplit(proxy)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
