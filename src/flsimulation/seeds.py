"""One seed, many independent streams.

Every random draw of a run comes from here, named by its purpose, the round and the
partition. So a draw never depends on the number of draws before it, and the order in which
clients work changes nothing.
"""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterator

import numpy as np


def _sequence(seed: int, purpose: str, round: int, partition: int) -> np.random.SeedSequence:
    names = (seed, zlib.crc32(purpose.encode()), round, partition)
    if (
        max(names) < 2**32
    ):  # the same words as of the integers, without NumPy's work on each of them
        return np.random.SeedSequence(np.array(names, np.uint32))
    return np.random.SeedSequence(names)


def rng(seed: int, purpose: str, round: int = 0, partition: int = 0) -> np.random.Generator:
    """NumPy generator of the stream ``(seed, purpose, round, partition)``."""
    return np.random.default_rng(_sequence(seed, purpose, round, partition))


def integer(seed: int, purpose: str, round: int = 0, partition: int = 0) -> int:
    """Non-negative 63-bit integer of the stream, for libraries that take a plain seed."""
    state = _sequence(seed, purpose, round, partition).generate_state(1, np.uint64)
    return int(state[0]) >> 1


@contextlib.contextmanager
def global_streams(seed: int) -> Iterator[None]:
    """Seed the global streams of Python, NumPy and PyTorch inside the block; restore them after it.

    A user's module may draw from any of them.
    """
    import torch

    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global stream
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        if torch.cuda.is_available():
            torch.manual_seed(seed)
        else:  # which would note a stack trace for a GPU that may come, a millisecond each time
            torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


@contextlib.contextmanager
def python_random(seed: int, purpose: str, round: int = 0) -> Iterator[None]:
    """Seed Python's global ``random`` inside the block and restore it afterwards.

    Flower's strategies sample nodes with the global ``random``; this makes their sample a
    function of the run's seed and the round alone.
    """
    state = random.getstate()
    random.seed(integer(seed, purpose, round))
    try:
        yield
    finally:
        random.setstate(state)
