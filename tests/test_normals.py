"""Normal numbers from the keystream of a cipher, whose key is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from flsimulation.privacy.normals import Normals

CPU = torch.device("cpu")


def drawn(seed: int, count: int) -> torch.Tensor:
    into = torch.zeros(1, count)
    Normals([count], CPU).add([into], [np.random.default_rng(seed)], [1.0])
    return into[0]


@pytest.mark.parametrize("sizes", [[1000], [7, 600, 1, 391], [1], [3, 2]])
def test_the_numbers_are_those_of_the_keystream_of_a_drawn_key(sizes: list[int]) -> None:
    into = [torch.full((2, size), 5.0) for size in sizes]
    generators = [np.random.default_rng(seed) for seed in (7, 8)]
    Normals(sizes, CPU).add(into, generators, [0.5, 2.0])
    pairs = -(-sum(sizes) // 2)
    for client, (seed, deviation) in enumerate(((7, 0.5), (8, 2.0))):
        key = np.random.default_rng(seed).bytes(16)
        encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        words = np.frombuffer(encryptor.update(bytes(8 * pairs)), "<i4").astype(np.float64)
        distance = np.sqrt(-2 * np.log(np.abs(words[:pairs]) / 2**31))
        angle = words[pairs:] * math.pi / 2**31
        numbers = np.concatenate([distance * np.cos(angle), distance * np.sin(angle)])
        found = torch.cat([own[client] for own in into]).double().numpy()
        assert found == pytest.approx(5 + deviation * numbers[: sum(sizes)], abs=2e-5)


def test_numbers_are_normal() -> None:
    found = drawn(3, 1_000_001).double().numpy()
    assert abs(found.mean()) < 0.004
    assert abs(found.std() - 1) < 0.003
    for limit in (0.1, 0.5, 1.0, 2.0, 3.0, 4.0):
        wanted = math.erfc(limit / math.sqrt(2)) * len(found)
        assert abs((np.abs(found) > limit).sum() - wanted) < 5 * math.sqrt(wanted)
    halves = found[:500_000], found[500_001:]  # the two coordinates of points
    assert abs(np.corrcoef(*halves)[0, 1]) < 0.006
    assert abs(np.corrcoef(halves[0] ** 2, halves[1] ** 2)[0, 1]) < 0.006


def test_each_time_a_stream_of_its_own() -> None:
    own, normals = np.random.default_rng(7), Normals([50_000], CPU)
    one, next_ = torch.zeros(1, 50_000), torch.zeros(1, 50_000)
    for into in (one, next_):
        normals.add([into], [own], [1.0])
    assert torch.equal(one[0], drawn(7, 50_000))
    assert abs(float(torch.corrcoef(torch.cat([one, next_]))[0, 1])) < 0.02


def test_the_largest_and_the_smallest_word_make_finite_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Words:
        def __init__(self, *_: object) -> None: ...

        def encryptor(self) -> Words:
            return self

        def update_into(self, data: bytes, into: memoryview) -> None:
            words = np.array([0, -(2**31), 1, 2**31 - 1, 0, 0, 0, 0], "<i4")
            into[: len(data)] = words.view(np.uint8).data

    monkeypatch.setattr("cryptography.hazmat.primitives.ciphers.Cipher", Words)
    found = drawn(0, 8)
    wanted = [math.sqrt(-math.log(least)) for least in (2**-64, 1, 2**-62 + 2**-64, 1)]
    assert found[:4].tolist() == pytest.approx(wanted, abs=1e-4)
    assert found[4:].tolist() == [0.0] * 4
