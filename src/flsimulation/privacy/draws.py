"""Random numbers that nobody can find out from others of them: ChaCha20's keystream under a secret key.

The generators of NumPy and PyTorch are made for simulations. Their state can be computed from their numbers, and some
of the noise is seen as it is: a weight of a pixel that is black in all examples has an update of zero, to which
the noise is added. So noise that has to hide something is not drawn from them.
"""

from __future__ import annotations

import math
import secrets
from typing import Any, Protocol

import numpy as np
import torch

KEY_BYTES = 32
_AES_BYTES = 16  # of a key, and of a counter
_ZEROS = memoryview(bytes(2**16))  # which stay in a core's cache
_UNIT = 2.0**-53  # between two neighbouring numbers


class Draws(Protocol):
    """What noise and samples are drawn from: a generator of NumPy, or `SecretDraws`."""

    def bytes(self, length: int, /) -> bytes:
        """Random bytes."""

    def random(self, size: int, /) -> Any:
        """Numbers that are uniform in [0, 1)."""

    def standard_normal(self, size: Any = None, /) -> Any:
        """Normal numbers; without a size a single one."""


def seed_of(own: Draws) -> int:
    """A seed of 63 bits, for what takes a plain one."""
    return int.from_bytes(own.bytes(8), "little") >> 1


def fill_words(own: Draws, words: np.ndarray) -> None:
    """Fill words of 32 bits with a keystream of AES, whose key is drawn.

    A key for many numbers: the cipher is several times as fast as what the key is drawn from.

    Parameters
    ----------
    own : Draws
        What the key is drawn from.
    words : int32 or uint32 [...]
        Contiguous.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    key = own.bytes(_AES_BYTES)  # used once, so that the counter begins with 0
    encryptor = Cipher(AES(key), CTR(bytes(_AES_BYTES))).encryptor()
    into = words.reshape(-1).view(np.uint8).data
    for start in range(0, len(into), len(_ZEROS)):
        part = into[start : start + len(_ZEROS)]
        encryptor.update_into(_ZEROS[: len(part)], part)


class SecretDraws:
    """Numbers of a secret key, each call's from a keystream of its own.

    Parameters
    ----------
    key : bytes, optional
        32 bytes; by default of the operating system's entropy.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(KEY_BYTES) if key is None else key
        self._calls = 0

    def bytes(self, length: int) -> bytes:
        """Random bytes."""
        return self._words(-(-length // 8)).tobytes()[:length]

    def random(self, size: int) -> np.ndarray:
        """Numbers that are uniform in [0, 1), float64 [size]."""
        return np.asarray((self._words(size) >> np.uint64(11)) * _UNIT)

    def standard_normal(self, size: int | tuple[int, ...] | None = None) -> Any:
        """Normal numbers, float64 of the size; without one a single number.

        Source: Box and Muller, "A Note on the Generation of Random Normal Deviates" (1958).
        """
        shape = () if size is None else (size,) if isinstance(size, int) else size
        count = math.prod(shape)
        pairs = -(-count // 2)
        uniform = torch.from_numpy(self.random(2 * pairs))
        length = uniform[:pairs].add_(_UNIT / 2).log_().mul_(-2).sqrt_()  # not the log of 0
        angle = uniform[pairs:].mul_(2 * math.pi)
        found = torch.cat([length * angle.cos(), length * angle.sin()])[:count].numpy()
        return float(found[0]) if size is None else found.reshape(shape)

    def _words(self, count: int) -> np.ndarray:
        """Words of the next keystream, uint64 [count]."""
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

        nonce = bytes(8) + self._calls.to_bytes(8, "little")  # behind a block counter of 8 bytes
        self._calls += 1
        stream = np.empty(8 * count, np.uint8)
        cipher = Cipher(ChaCha20(self._key, nonce), mode=None)
        cipher.encryptor().update_into(bytes(8 * count), stream.data)
        return stream.view("<u8")
