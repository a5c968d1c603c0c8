"""Normal numbers of PyTorch from the whole state of a NumPy generator."""

from __future__ import annotations

import numpy as np
import torch

from flsimulation.privacy.normals import normals


def test_the_state_is_drawn_from_the_generator_word_by_word() -> None:
    words = np.random.default_rng(7).integers(2**32, size=624, dtype=np.uint64)
    theirs = np.random.MT19937()
    theirs.state = {
        "bit_generator": "MT19937",
        "state": {"key": words.astype(np.uint32), "pos": 624},
    }
    own = normals(np.random.default_rng(7))
    found = torch.rand(1000, generator=own)
    wanted = (theirs.random_raw(1000) % 2**24) / 2**24  # as PyTorch makes a float32 of a word
    assert found.tolist() == wanted.tolist()


def test_one_stream_each_time() -> None:
    own = np.random.default_rng(7)
    one, next_, again = (
        torch.empty(50_000).normal_(generator=normals(source))
        for source in (own, own, np.random.default_rng(7))
    )
    assert torch.equal(one, again)
    assert abs(float(torch.corrcoef(torch.stack([one, next_]))[0, 1])) < 0.02
    assert abs(float(one.mean())) < 0.02
    assert abs(float(one.std()) - 1) < 0.02
