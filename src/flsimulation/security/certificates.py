"""A private CA and the SuperLink's certificate, as X.509 (RFC 5280) with keys on NIST curves."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flsimulation.errors import InputError
from flsimulation.host.files import write_atomic

CA_DAYS = 3650
"""Days for which a CA is valid: its certificate is on every client's machine."""
SERVER_DAYS = 397
"""Days for which the SuperLink's certificate is valid, the longest that browsers accept."""
RENEW_DAYS = 30
"""With fewer days left, the SuperLink's certificate is renewed when a network starts."""

_SKEW = datetime.timedelta(hours=1)  # by which another machine's clock may be late


@dataclass(frozen=True)
class Signed:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, certificate: Path, key: Path) -> None:
        """Write both as PEM; the key can be read only by its owner."""
        for path in (certificate, key):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(key, pem_of(self.key), mode=0o600)
        write_atomic(certificate, self.certificate.public_bytes(serialization.Encoding.PEM))


def make_ca(now: datetime.datetime) -> Signed:
    """A new CA, which may sign certificates of servers but not of other CAs."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("FLSimulation CA")
    usage = _usage(signs_certificates=True)
    builder = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return Signed(builder.sign(key, hashes.SHA384()), key)


def make_server(ca: Signed, names: Iterable[str], now: datetime.datetime) -> Signed:
    """A new key and certificate of a server.

    Parameters
    ----------
    ca : Signed
        Signs it.
    names : iterable of str
        DNS names and IP addresses by which the server is reached.
    now : datetime
        With a time zone; the certificate is valid from one hour before.

    Raises
    ------
    InputError
        If a name is neither a DNS name nor an IP address.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = ca.certificate.subject
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    alternatives = x509.SubjectAlternativeName([_general(name) for name in names])
    builder = (
        _builder(_name("FLSimulation SuperLink"), issuer, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(authority, critical=False)
        .add_extension(server, critical=False)
        .add_extension(alternatives, critical=False)
    )
    return Signed(builder.sign(ca.key, hashes.SHA384()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        if not name or set(name) & set(" /:@"):
            raise ValueError
        return x509.DNSName(name)
    except ValueError:
        raise InputError(
            f"--name {name!r} must be a DNS name or an IP address, e.g. server.example"
        ) from None


def names_of(certificate: x509.Certificate) -> list[str]:
    """DNS names and IP addresses of a server's certificate, in its order."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in found]


def days_left(certificate: x509.Certificate, now: datetime.datetime) -> float:
    """Days until the certificate expires; negative if it has."""
    return (certificate.not_valid_after_utc - now) / datetime.timedelta(days=1)


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, as ``openssl x509 -fingerprint -sha256`` prints it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file. Raises `InputError` if it has none."""
    try:
        return x509.load_pem_x509_certificate(_bytes(path))
    except ValueError:
        raise InputError(f"{path}: is not a certificate in PEM form") from None


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a PEM file. Raises `InputError` if it is none of a NIST curve."""
    try:
        key: PrivateKeyTypes = serialization.load_pem_private_key(_bytes(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{path}: is not a private key in PEM form without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path}: must be a key on a NIST curve, e.g. of `openssl ecparam`")
    return key


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def check_pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    """Raise `InputError`, which names ``path``, if the key is not the certificate's."""
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise InputError(f"{path}: is not the key of the certificate; give the two that belong")


def check_signed(server: x509.Certificate, ca: x509.Certificate, path: Path) -> None:
    """Raise `InputError`, which names ``path``, if the CA did not sign the server's certificate."""
    try:
        server.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise InputError(f"{path}: is not signed by the CA; give the CA that signed it") from None


def check_is_ca(certificate: x509.Certificate, path: Path) -> None:
    """Raise `InputError`, which names ``path``, if the certificate may not sign others."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        found = False
    if not found:
        raise InputError(f"{path}: is not the certificate of a CA (CA:TRUE is missing)")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
