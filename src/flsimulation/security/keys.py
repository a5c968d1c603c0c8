"""Keys by which clients are recognized, in OpenSSH's form, as Flower's SuperNodes read them."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flsimulation.errors import InputError
from flsimulation.host.files import write_atomic
from flsimulation.security.home import HOME

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def check_name(name: str, option: str = "--name") -> str:
    """The name, if it is one of a client. Raises `InputError`, which names the option."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{option} {name}: use letters, digits, '.', '_' and '-', 63 at most, and begin with "
            "a letter or a digit"
        )
    return name


def ensure_key(path: Path) -> str:
    """The public half of the key in a file; the key is made if there is no file.

    Raises
    ------
    InputError
        If the file is not a key, others can read it, or it cannot be written.
    """
    if not path.is_file():
        _write_new(path)
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path}: others can read this private key; chmod 600 it, or make another")
    try:
        found = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, UnsupportedAlgorithm, TypeError):
        raise InputError(f"{path}: is not a private key; remove it to have a new one") from None
    return _public_text(found.public_key(), path)


def _write_new(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, _private_text(key), mode=0o600)
    except OSError as error:
        raise InputError(
            f"{path}: the client's key cannot be written ({error.strerror or error}); set {HOME} to a "
            "folder that can be written and is kept"
        ) from None


def _private_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def public_of(text: str, source: str) -> str:
    """A public key in OpenSSH's form, without its comment.

    Raises
    ------
    InputError
        Naming ``source``, if it is no public key on a NIST curve.
    """
    try:
        found = serialization.load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(
            f"{source}: is not a public key; make one with flsim client --make-key"
        ) from None
    return _public_text(found, source)


def _public_text(key: object, source: object) -> str:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise InputError(
            f"{source}: must be a key on a NIST curve, as flsim client --make-key makes"
        )
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(*form).decode()


def fingerprint(public: str) -> str:
    """SHA-256 of a public key, as ``ssh-keygen -lf FILE`` prints it."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
