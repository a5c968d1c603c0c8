"""The streams of random numbers: which numbers a name stands for never changes."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from flsimulation import seeds


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize(("round", "partition"), [(0, 0), (3, 44), (10**6, 999_999)])
def test_a_stream_is_numpys_for_the_integers_of_its_name(
    seed: int, round: int, partition: int
) -> None:
    words = [seed, zlib.crc32(b"fit"), round, partition]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    assert seeds.integer(seed, "fit", round, partition) == int(state[0]) // 2
    drawn = np.random.default_rng(np.random.SeedSequence(words)).integers(0, 2**40, 5)
    assert seeds.rng(seed, "fit", round, partition).integers(0, 2**40, 5).tolist() == drawn.tolist()


def test_purposes_have_streams_of_their_own() -> None:
    assert seeds.integer(1, "fit", 2, 3) != seeds.integer(1, "test", 2, 3)
