"""Noise of a network: numbers of a secret key, of which some tell nothing of the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from flsimulation.experiment import Experiment
from flsimulation.privacy.draws import SecretDraws
from flsimulation.privacy.masks import keystream
from flsimulation.privacy.normals import Normals
from flsimulation.privacy.sources import generator

KEY = bytes(range(32))


def test_uniform_numbers_are_the_keystreams_highest_bits() -> None:
    words = keystream(KEY, 2000).view("<u8")
    found = SecretDraws(KEY).random(1000)
    assert found.tolist() == [int(word >> 11) / 2**53 for word in words.tolist()]


def test_normal_numbers_are_pairs_of_an_angle_and_a_length() -> None:
    uniform = SecretDraws(KEY).random(6)
    lengths = [math.sqrt(-2 * math.log(u + 2**-54)) for u in uniform[:3]]
    angles = [2 * math.pi * u for u in uniform[3:]]
    wanted = [length * math.cos(angle) for length, angle in zip(lengths, angles, strict=True)]
    wanted += [length * math.sin(angle) for length, angle in zip(lengths, angles, strict=True)]
    found = SecretDraws(KEY).standard_normal((5, 1))
    assert found.shape == (5, 1)
    assert found[:, 0].tolist() == pytest.approx(wanted[:5], rel=1e-12)
    assert SecretDraws(KEY).standard_normal() == pytest.approx(
        math.sqrt(-2 * math.log(uniform[0] + 2**-54)) * math.cos(2 * math.pi * uniform[1]),
        rel=1e-12,
    )


def test_they_are_normal_and_calls_and_keys_have_nothing_in_common() -> None:
    own = SecretDraws(KEY)
    parts = [own.standard_normal(100_000), own.standard_normal(100_000)]
    parts.append(SecretDraws(KEY[::-1]).standard_normal(100_000))
    for part in parts:
        assert stats.kstest(part, "norm").pvalue > 0.001
        assert float(part.std()) == pytest.approx(1, abs=0.01)
    among = np.corrcoef([*parts, parts[0] ** 2, np.roll(parts[0], 50_000)])
    assert np.abs(among - np.eye(5)).max() < 0.02


def test_bytes_are_the_keystream() -> None:
    own = SecretDraws(KEY)
    assert own.bytes(16) == keystream(KEY, 4).tobytes()
    assert len(own.bytes(3)) == 3


def test_a_clients_noise_is_of_keys_of_the_stream() -> None:
    into = [torch.zeros(1, 50), torch.zeros(1, 50)]
    own = SecretDraws(KEY)
    for part in into:
        Normals([50], torch.device("cpu")).add([part], [own], [3.0])
    again = SecretDraws(KEY)
    for part in into:
        key = again.bytes(16)
        wanted = torch.zeros(1, 50)
        Normals([50], torch.device("cpu")).add([wanted], [Fixed(key)], [3.0])
        assert torch.equal(part, wanted)
    assert not torch.equal(*into)


class Fixed(SecretDraws):
    """Draws the same bytes each time."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._found = key

    def bytes(self, length: int) -> bytes:
        return self._found[:length]


def test_a_network_draws_from_a_key_of_the_system_and_a_simulation_from_the_seed(
    make_experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_bytes", lambda size: KEY[:size])
    network = make_experiment(runtime={"kind": "network"})
    found = generator(network, "noise-server", 1).standard_normal(4)
    assert found.tolist() == SecretDraws(KEY).standard_normal(4).tolist()
    here = generator(make_experiment(), "noise-server", 1).standard_normal(4)
    assert here.tolist() != found.tolist()
