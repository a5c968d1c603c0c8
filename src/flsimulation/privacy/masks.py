"""Keys, masks and sealed shares of secure aggregation, all on `cryptography` and PyCryptodome.

X25519 (RFC 7748) agrees on a secret for two clients, HKDF with SHA-256 (RFC 5869) derives keys of it, a
mask is the keystream of ChaCha20 (RFC 8439), a share is encrypted with AES-256-GCM, and secrets are shared
by Shamir's scheme over GF(2^128). Flower's own pseudo-random generator of masks is not used: it keeps 32 of
a secret's 256 bits (docs/decisions/0036).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

SECRET_BYTES = 32
"""Of the secret from which all keys of a client's round are derived."""
SEED_BYTES = 16
"""Of a seed that is shared by Shamir's scheme, and of a share; X25519 has 128 bits of security too."""
_KEY_BYTES = 32
_NONCE_BYTES = 12  # of AES-GCM
_NAME = b"flsimulation secure aggregation 1: "


class PublicKeys(NamedTuple):
    """What all may know of a client's keys."""

    sealing: bytes
    """X25519 key for the encryption of shares."""
    masking: bytes
    """X25519 key for the masks that it has in common with other clients."""
    check: bytes
    """A digest by which the seed of its own mask is recognised."""

    def joined(self) -> bytes:
        """All in one, 96 bytes."""
        return b"".join(self)

    def check_order(self) -> None:
        """Raise ``ValueError`` if a key is a point of low order: everybody agrees on the same secret with it."""
        probe = X25519PrivateKey.generate()
        for key in (self.sealing, self.masking):
            try:
                probe.exchange(X25519PublicKey.from_public_bytes(key))
            except ValueError:
                raise ValueError("a public key is a point of low order") from None

    @classmethod
    def of(cls, joined: bytes) -> PublicKeys:
        """The keys in the bytes of `joined`. Raises ``ValueError`` if there are not 96."""
        if len(joined) != 3 * _KEY_BYTES:
            raise ValueError(f"public keys have {3 * _KEY_BYTES} bytes, got {len(joined)}")
        return cls(joined[:32], joined[32:64], joined[64:])


class Keys:
    """A client's keys of one round.

    Parameters
    ----------
    secret : bytes
        32 bytes, from which all keys are derived.
    """

    def __init__(self, secret: bytes) -> None:
        self._sealing = _private(derived(secret, "sealing"))
        self.mask_seed = derived(secret, "masking")[:SEED_BYTES]
        self.own_seed = derived(secret, "own mask")[:SEED_BYTES]
        self._masking = masking_key(self.mask_seed)

    @property
    def public(self) -> PublicKeys:
        """What others may know."""
        own = check_of(self.own_seed)
        return PublicKeys(_public(self._sealing), _public(self._masking), own)

    def mask_between(self, other: bytes, words: int) -> np.ndarray:
        """The mask that this client has in common with the one of a masking key, uint32 [words]."""
        return mask_between(self._masking, other, words)

    def sealed(self, shares: Sequence[bytes], other: bytes, context: str) -> bytes:
        """Shares for the client of a sealing key, which only it can read.

        Parameters
        ----------
        shares : sequence of bytes
            Of 16 bytes each.
        other : bytes
            That client's sealing key.
        context : str
            From whom to whom; what was sealed for another context cannot be opened.
        """
        import os

        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        cipher = AESGCM(_agreed(self._sealing, other, "sealing"))
        return nonce + cipher.encrypt(nonce, b"".join(shares), context.encode())

    def opened(self, sealed: bytes, other: bytes, context: str) -> list[bytes]:
        """The shares that the client of a sealing key sealed for this one.

        Raises
        ------
        ValueError
            If they were not sealed by it, for this client and context.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            plain = AESGCM(_agreed(self._sealing, other, "sealing")).decrypt(
                nonce, rest, context.encode()
            )
        except InvalidTag:
            raise ValueError(f"what is sealed as {context!r} is not from that client") from None
        return [plain[i : i + SEED_BYTES] for i in range(0, len(plain), SEED_BYTES)]


def derived(secret: bytes, purpose: str) -> bytes:
    """32 bytes derived from a secret by HKDF with SHA-256, for one purpose."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = _NAME + purpose.encode()
    return HKDF(SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(secret)


def keystream(key: bytes, words: int) -> np.ndarray:
    """The first words of ChaCha20's keystream for a key that is used once, uint32 [words]."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    stream = np.empty(4 * words, np.uint8)
    cipher = Cipher(ChaCha20(key, bytes(16)), mode=None)  # counter and nonce are 0
    cipher.encryptor().update_into(bytes(4 * words), stream.data)
    return stream.view("<u4")


def own_mask(seed: bytes, words: int) -> np.ndarray:
    """The mask that only one client has, of its seed, uint32 [words]."""
    return keystream(derived(seed, "own mask's stream"), words)


def check_of(seed: bytes) -> bytes:
    """The digest by which the seed of a client's own mask is recognised."""
    return derived(seed, "own mask's check")


def masking_key(seed: bytes) -> X25519PrivateKey:
    """The private masking key of a seed."""
    return _private(derived(seed, "masking key"))


def public_masking_key(seed: bytes) -> bytes:
    """The public masking key of a seed."""
    return _public(masking_key(seed))


def mask_between(private: X25519PrivateKey, other: bytes, words: int) -> np.ndarray:
    """The mask of two clients, of the private masking key of one and the public one of the other."""
    return keystream(_agreed(private, other, "mask"), words)


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares of a secret of 16 bytes; any ``threshold`` of them restore it, fewer tell nothing."""
    from Crypto.Protocol.SecretSharing import Shamir

    return [share for _, share in Shamir.split(threshold, count, secret, ssss=False)]


def restored(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of at least ``threshold`` shares, by their place in the list of `split`."""
    from Crypto.Protocol.SecretSharing import Shamir

    chosen: Iterable[tuple[int, bytes]] = sorted(shares.items())[:threshold]
    return bytes(Shamir.combine([(place + 1, share) for place, share in chosen], ssss=False))


def _private(seed: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(seed)


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _agreed(private: X25519PrivateKey, other: bytes, purpose: str) -> bytes:
    """A key that two clients have in common; bound to both public keys. Raises ``ValueError``."""
    shared = private.exchange(X25519PublicKey.from_public_bytes(other))
    both = b"".join(sorted((_public(private), other)))
    return derived(shared + both, purpose)
