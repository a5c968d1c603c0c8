"""Where certificates and keys are stored, and whether they are used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flsimulation.errors import InputError

HOME, CA, INSECURE = "FLSIM_HOME", "FLSIM_CA", "FLSIM_INSECURE"
"""Environment: the folder of certificates and keys, a CA's certificate, and 1 for no TLS."""

WARNING = (
    "WARNING: FLSIM_INSECURE is set: there is no TLS and no node identity; whoever reaches the "
    "network can read the models and join under any name"
)


@dataclass(frozen=True)
class Home:
    """The folder of certificates and keys.

    Its parts are separate folders, so that containers share only what they need:
    ``ca`` for the command that makes certificates, ``server`` for the SuperLink, ``trust`` for
    everybody, ``keys`` for one client each, ``waiting`` for clients that are to be admitted, and
    ``apart`` where single clients have such a folder of their own.
    """

    folder: Path

    @property
    def ca_key(self) -> Path:
        """Private key of the CA; only the command that makes certificates reads it."""
        return self.folder / "ca" / "ca.key"

    @property
    def ca(self) -> Path:
        """Certificate of the CA, which everybody may have."""
        return self.folder / "trust" / "ca.pem"

    @property
    def server_key(self) -> Path:
        """Private key of the SuperLink."""
        return self.folder / "server" / "server.key"

    @property
    def server(self) -> Path:
        """Certificate of the SuperLink."""
        return self.folder / "server" / "server.pem"

    @property
    def waiting(self) -> Path:
        """Folders of public keys that SuperLinks of this machine are to admit."""
        return self.folder / "waiting"

    def waiting_at(self, port: int) -> Path:
        """Public keys that the SuperLink with this port for clients is to admit."""
        return self.waiting / str(port)

    def apart_at(self, port: int) -> dict[str, Path]:
        """Folder of each client, by name, that has one of its own instead; they are mounted at a start."""
        folders = sorted(self.apart.iterdir()) if self.apart.is_dir() else []
        return {folder.name: folder / str(port) for folder in folders}

    @property
    def apart(self) -> Path:
        """A folder for each client whose name no other may claim: only that client can write there."""
        return self.folder / "apart"

    def key(self, name: str) -> Path:
        """Private key of a client."""
        return self.folder / "keys" / f"{name}.key"


def home() -> Home:
    """The folder in ``FLSIM_HOME``, by default ``~/.flsim``."""
    return Home(Path(os.environ.get(HOME) or Path.home() / ".flsim").absolute())


def is_insecure() -> bool:
    """Whether ``FLSIM_INSECURE`` turns TLS and node identity off.

    Raises
    ------
    InputError
        If it has a value other than 0 and 1.
    """
    value = os.environ.get(INSECURE, "")
    if value not in ("", "0", "1"):
        raise InputError(f"{INSECURE} must be 0 or 1, got {value!r}")
    return value == "1"


def known_ca() -> Path:
    """Where the CA's certificate is by which SuperLinks are recognized; it need not exist."""
    given = os.environ.get(CA)
    return Path(given).absolute() if given else home().ca


def trusted_ca() -> Path:
    """The CA's certificate by which SuperLinks are recognized.

    Raises
    ------
    InputError
        If there is none.
    """
    path = known_ca()
    if not path.is_file():
        source = f"{CA} {path}" if os.environ.get(CA) else str(path)
        raise InputError(
            f"{source}: no such CA certificate; get it from the server's machine with "
            f"`flsim certs --export ca.pem` and name it in {CA}"
        )
    return path
