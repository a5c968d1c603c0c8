"""The parts of secure aggregation: published vectors, sums in the ring, graphs within their bounds."""

from __future__ import annotations

import hashlib
from math import floor

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from scipy import stats

from flsimulation.privacy.field import Field
from flsimulation.privacy.graph import neighbours_of, plan_for
from flsimulation.privacy.masks import (
    Keys,
    PublicKeys,
    derived,
    keystream,
    mask_between,
    own_mask,
    restored,
    split,
)
from flsimulation.privacy.unmasking import Shares, mask_of_sum

# RFC 7748, section 6.1
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
BETWEEN = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

FROZEN = {
    "public": "740fc6b99ca4ff32a61cfb5728d06008fbc3b852969a17d162573d584fa51629",
    "own": [4167239819, 52115580, 1561874248, 3627426248],
    "between": [1495528214, 1897897373, 1248636859, 4082914293],
}
"""Of the secret 0, 1, ..., 31: other values mean that programs of two versions do not fit."""


def test_the_keystream_is_chacha20s_of_rfc_8439() -> None:
    # appendix A.1, test vector 1: key, nonce and counter are 0
    expected = (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    assert keystream(bytes(32), 16).tobytes().hex() == expected


def test_keys_are_derived_by_hkdf_of_rfc_5869() -> None:
    # appendix A.3: SHA-256, no salt, no info
    expected = (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )
    assert HKDF(SHA256(), length=42, salt=None, info=b"").derive(b"\x0b" * 22).hex() == expected
    info = b"flsimulation secure aggregation 1: purpose"
    ours = HKDF(SHA256(), length=32, salt=None, info=info).derive(b"secret")
    assert derived(b"secret", "purpose") == ours
    assert derived(b"secret", "another") != ours


def test_two_clients_have_the_mask_of_the_secret_of_rfc_7748_in_common() -> None:
    alice, bob = map(X25519PrivateKey.from_private_bytes, (ALICE, BOB))
    mask = mask_between(alice, BOB_PUBLIC, 1000)
    assert np.array_equal(mask, mask_between(bob, ALICE_PUBLIC, 1000))
    key = derived(BETWEEN + ALICE_PUBLIC + BOB_PUBLIC, "mask")  # ascending
    assert np.array_equal(mask, keystream(key, 1000))


def test_masks_and_keys_of_a_secret_are_frozen() -> None:
    keys = Keys(bytes(range(32)))
    assert hashlib.sha256(keys.public.joined()).hexdigest() == FROZEN["public"]
    assert own_mask(keys.own_seed, 4).tolist() == FROZEN["own"]
    assert keys.mask_between(BOB_PUBLIC, 4).tolist() == FROZEN["between"]
    assert PublicKeys.of(keys.public.joined()) == keys.public
    with pytest.raises(ValueError, match="have 96 bytes, got 95"):
        PublicKeys.of(bytes(95))


def test_sealed_shares_are_opened_by_their_client_in_their_context_only() -> None:
    ann, ben, eve = (Keys(bytes([i]) * 32) for i in range(3))
    both = [b"a" * 16, b"b" * 16]
    sealed = ann.sealed(both, ben.public.sealing, "0 to 1")
    assert ben.opened(sealed, ann.public.sealing, "0 to 1") == both
    assert not any(share in sealed for share in both)
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for key, text, context in (
        (ben, sealed, "1 to 0"),
        (eve, sealed, "0 to 1"),
        (ben, changed, "0 to 1"),
    ):
        with pytest.raises(ValueError, match="not from that client"):
            key.opened(text, ann.public.sealing, context)


def test_a_secret_is_restored_by_as_many_shares_as_needed_and_by_no_fewer() -> None:
    secret = bytes(range(16))
    shares = dict(enumerate(split(secret, 3, 5)))
    assert restored({0: shares[0], 2: shares[2], 4: shares[4]}, 3) == secret
    assert restored(shares, 3) == secret
    assert restored({0: shares[0], 2: shares[2]}, 2) != secret


def test_the_sum_is_exact_in_the_ring_and_near_the_real_one() -> None:
    draws = np.random.default_rng(1)
    field = Field(2.0, 50)
    values = draws.uniform(-2, 2, (50, 300))
    values[:, 0], values[:, 1], values[:, 2] = 2.0, -2.0, 0.0  # the ends of the range
    encoded = [field.encoded(row, draws) for row in values]
    assert all(own.words.dtype == np.uint32 and own.cut == 0 for own in encoded)
    whole = sum(own.words.view(np.int32).astype(np.int64) for own in encoded)
    total = np.zeros(300, np.uint32)
    for own in encoded:
        total += own.words
    assert np.array_equal(total.view(np.int32), whole)  # did not wrap
    apart = np.abs(field.decoded(total) - values.sum(0))
    assert apart.max() < 50 * field.step
    assert 0 < apart[3:].mean() < 8 * field.step  # the steps' errors do not add up
    assert field.decoded(total)[2] == 0.0
    assert field.step == 2.0 / 42949671


def test_rounding_is_right_on_average_and_what_is_beyond_the_range_is_counted() -> None:
    field = Field(1.0, 2**20)  # few steps
    words, cut = field.encoded(np.full(200_000, 0.3 * field.step), np.random.default_rng(2))
    assert cut == 0
    assert set(words.tolist()) == {0, 1}
    assert words.mean() == pytest.approx(0.3, abs=0.005)
    words, cut = field.encoded(np.array([3.0, -3.0, 0.5]), np.random.default_rng(2))
    assert cut == 2
    assert field.decoded(words)[:2].tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("clients", "plan"),
    [
        (2, (1, 1, 2)),
        (3, (2, 2, 3)),
        (10, (9, 5, 9)),
        (100, (32, 17, 90)),
        (1000, (52, 28, 900)),
    ],
)
def test_the_graph_has_the_fewest_neighbours_within_the_bounds(
    clients: int, plan: tuple[int, int, int]
) -> None:
    found = plan_for(clients, 0.1, 0.1)
    assert (found.neighbours, found.threshold, found.least) == plan


@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.1, 0.1), (0.2, 0.1), (0.3, 0.05)])
@pytest.mark.parametrize("clients", [60, 100, 300, 1000])
def test_the_bounds_hold_as_scipy_counts_them(clients: int, shares: tuple[float, float]) -> None:
    _, k, t, _ = plan_for(clients, *shares)
    gone, bad = (floor(clients * share) for share in shares)
    if k == clients - 1:
        assert bad < t <= k - gone
        return
    corrupt = stats.hypergeom(clients - 1, bad, k)
    dropped = stats.hypergeom(clients - 1, gone, k)
    assert clients * corrupt.sf(t - 1) <= 2**-40 * 1.001
    assert clients * dropped.sf(k - t) <= 2**-30 * 1.001
    assert clients * ((gone + bad) / clients) ** (k / 2) <= 2**-30
    assert t > k / 2


def test_a_cohort_that_is_too_small_for_its_assumptions_is_refused() -> None:
    with pytest.raises(ValueError, match="5 clients are too few where 0.4 of them may drop out"):
        plan_for(5, 0.4, 0.4)
    with pytest.raises(ValueError, match="1 clients are too few"):
        plan_for(1, 0.0, 0.0)


def test_every_client_has_as_many_neighbours_in_a_connected_graph() -> None:
    partitions = list(range(0, 200, 2))
    graph = neighbours_of(partitions, 6, np.random.default_rng(3))
    assert sorted(graph) == partitions
    assert all(len(near) == 6 and near == sorted(near) for near in graph.values())
    assert all(own in graph[other] for own, near in graph.items() for other in near)
    seen, new = {0}, {0}
    while new:
        new = {other for own in new for other in graph[own]} - seen
        seen |= new
    assert seen == {*partitions}
    again = neighbours_of(partitions, 6, np.random.default_rng(4))
    assert again != graph
    assert neighbours_of([4, 1, 7], 2, np.random.default_rng(3)) == {
        4: [1, 7],
        1: [4, 7],
        7: [1, 4],
    }


def test_the_mask_of_a_sum_needs_enough_shares_that_fit() -> None:
    keys = {p: Keys(bytes([p]) * 32) for p in range(3)}
    public = {p: own.public for p, own in keys.items()}
    graph = {0: [1, 2], 1: [0, 2], 2: [0, 1]}
    own = {p: dict(enumerate(split(keys[p].own_seed, 2, 2))) for p in (0, 1)}
    lost = dict(enumerate(split(keys[2].mask_seed, 2, 2)))
    shares = Shares(2, {**own, 2: lost})
    found = mask_of_sum(public, graph, [0, 1, 2], [0, 1], shares, 5)
    expected = sum(own_mask(keys[p].own_seed, 5) for p in (0, 1))
    for p in (0, 1):  # lower than 2, so that they added it
        expected = expected + keys[p].mask_between(public[2].masking, 5)
    assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match="1 shares of a secret of client 2 arrived, 2 needed"):
        mask_of_sum(public, graph, [0, 1, 2], [0, 1], Shares(2, {**own, 2: {0: lost[0]}}), 5)
    for wrong, client in (({**own, 2: own[0]}, 2), ({0: lost, 1: own[1], 2: lost}, 0)):
        with pytest.raises(ValueError, match=f"of client {client} do not fit its keys"):
            mask_of_sum(public, graph, [0, 1, 2], [0, 1], Shares(2, wrong), 5)
