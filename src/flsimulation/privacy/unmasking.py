"""The masks that are left in a sum of masked updates, of the shares of the clients' secrets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flsimulation.privacy.masks import (
    PublicKeys,
    check_of,
    mask_between,
    masking_key,
    own_mask,
    public_masking_key,
    restored,
)


class Shares(NamedTuple):
    """Shares of one secret of each client: of its own mask, or of its masking key if it dropped out."""

    threshold: int
    found: dict[int, dict[int, bytes]]
    """By the client whose secret it is, and the place of the neighbour among its neighbours."""


def mask_of_sum(
    public: Mapping[int, PublicKeys],
    graph: Mapping[int, Sequence[int]],
    senders: Collection[int],
    alive: Collection[int],
    shares: Shares,
    words: int,
) -> np.ndarray:
    """What is added to the sum of the clients' encoded updates in that of their masked ones.

    Parameters
    ----------
    public : mapping
        The clients' public keys.
    graph : mapping
        Their neighbours, ascending.
    senders, alive : collection of int
        Clients that sealed shares, and those of them whose masked update is in the sum.
    shares : Shares
        The shares that were returned.
    words : int
        Length of the sum.

    Returns
    -------
    ndarray
        uint32 [words]: the own masks of those in the sum, and what they have in common with the others.

    Raises
    ------
    ValueError
        If a secret has too few shares, or shares that do not fit its client's keys.
    """
    total = np.zeros(words, np.uint32)
    for client in sorted(alive):
        seed = _secret(client, shares)
        if check_of(seed) != public[client].check:
            raise ValueError(_wrong(client))
        total += own_mask(seed, words)
    for client in sorted(set(senders) - set(alive)):
        near = [other for other in graph[client] if other in alive]
        if not near:
            continue
        seed = _secret(client, shares)
        if public_masking_key(seed) != public[client].masking:
            raise ValueError(_wrong(client))
        key = masking_key(seed)
        for other in near:
            mask = mask_between(key, public[other].masking, words)
            total = total + mask if other < client else total - mask
    return total


def _secret(client: int, shares: Shares) -> bytes:
    found = shares.found[client]
    if len(found) < shares.threshold:
        raise ValueError(
            f"{len(found)} shares of a secret of client {client} arrived, {shares.threshold} needed"
        )
    return restored(found, shares.threshold)


def _wrong(client: int) -> str:
    return f"the shares of a secret of client {client} do not fit its keys"
