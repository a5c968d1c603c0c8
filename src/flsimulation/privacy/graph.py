"""Who shares masks with whom, and how many may be corrupt or drop out.

Bell, Bonawitz, Gascon, Lepoint and Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead", ACM CCS 2020: each client shares masks with k others of a random graph, not with all. k and the
threshold t of the secret sharing are the smallest for which, with the assumed shares of corrupt and
dropped clients (Section 3.3, in the model of clients and a server that follow the protocol):

- a client has t or more corrupt neighbours with probability below 2^-40 for all clients together,
- a client has fewer than t neighbours left with probability below 2^-30,
- the graph of the honest clients that are left is not connected with probability below 2^-30.

t is more than k / 2, so that a server cannot have half of a client's neighbours return the shares of one
of its secrets and the other half those of the other. A small cohort shares masks with everybody.
"""

from __future__ import annotations

from math import exp, floor, lgamma
from typing import NamedTuple

import numpy as np

_SECURITY, _CORRECTNESS = 2.0**-40, 2.0**-30


class Plan(NamedTuple):
    """The sizes of one secure aggregation."""

    clients: int
    """Clients that take part."""
    neighbours: int
    """Of each client: k."""
    threshold: int
    """Neighbours that restore a client's secret together: t."""
    least: int
    """Fewest masked updates that are added: with fewer, the sum says too much of one client."""


def is_enough(clients: int, dropped: float, corrupt: float) -> bool:
    """Whether there is a plan for so many clients; parameters as of `plan_for`."""
    try:
        plan_for(clients, dropped, corrupt)
    except ValueError:
        return False
    return True


def plan_for(clients: int, dropped: float, corrupt: float) -> Plan:
    """The smallest neighbourhoods that meet the bounds.

    Parameters
    ----------
    clients : int
        Clients that take part, at least 2.
    dropped, corrupt : float
        Assumed largest shares of clients that drop out, and that work together with the server.

    Raises
    ------
    ValueError
        If no neighbourhood is large enough: the two shares are too large together.
    """
    gone, bad = floor(clients * dropped), floor(clients * corrupt)
    least = max(clients - gone, bad + 2)
    others = clients - 1
    bad = max(1, bad)  # a small cohort shares masks with everybody
    for k in range(2, others, 2):
        if clients * ((gone + bad) / clients) ** (k / 2) > _CORRECTNESS:
            continue
        for t in range(k // 2 + 1, k + 1):
            if clients * _tail(others, gone, k, k - t + 1) > _CORRECTNESS:
                break  # a larger t is worse
            if clients * _tail(others, bad, k, t) <= _SECURITY:
                return Plan(clients, k, t, least)
    t = max(others // 2 + 1, floor(clients * corrupt) + 1)
    if clients < 2 or t > others - gone or least > clients:
        raise ValueError(
            f"{clients} clients are too few where {dropped:g} of them may drop out and {corrupt:g} may be corrupt"
        )
    return Plan(clients, others, t, least)


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """The probability of ``least`` marked ones or more among those drawn, without replacement."""
    counts = range(max(least, drawn - (population - marked), 0), min(drawn, marked) + 1)
    whole = _log_choose(population, drawn)
    return sum(
        exp(_log_choose(marked, x) + _log_choose(population - marked, drawn - x) - whole)
        for x in counts
    )


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def neighbours_of(
    partitions: list[int], degree: int, draws: np.random.Generator
) -> dict[int, list[int]]:
    """A random graph in which every client has the same number of neighbours.

    The clients stand in a random circle, each next to its neighbours (a Harary graph, as in the paper).

    Parameters
    ----------
    partitions : list of int
        The clients.
    degree : int
        Neighbours of each: an even number, or all others.
    draws : Generator
        The stream of the order.

    Returns
    -------
    dict
        The neighbours of each client, ascending.
    """
    count = len(partitions)
    if degree >= count - 1:
        return {own: sorted(p for p in partitions if p != own) for own in partitions}
    circle = [partitions[place] for place in draws.permutation(count)]
    away = [distance for d in range(1, degree // 2 + 1) for distance in (d, -d)]
    return {
        own: sorted(circle[(place + d) % count] for d in away) for place, own in enumerate(circle)
    }
