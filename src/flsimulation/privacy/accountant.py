"""Epsilon of noise that is added many times, and the noise for an epsilon: dp-accounting's.

A mechanism adds Gaussian noise to a sum over a Poisson sample: each client, or example, is in it with
the same probability, independently of all others. Two data sets are neighbours if one has one client, or
example, more (add or remove one). The conversion from Renyi divergences to epsilon is that of Balle et
al., "Hypothesis Testing Interpretations and Renyi Differential Privacy" (AISTATS 2020), as in
dp-accounting; figures published before 2020 use Mironov's, which is larger (docs/privacy.md).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

Method = Literal["rdp", "pld"]

_NOISE_TOLERANCE = 1e-4  # of a computed noise multiplier, which is rounded up
_MOST_NOISE = 1e6


class Mechanism(NamedTuple):
    """Gaussian noise on a sum over a Poisson sample."""

    noise_multiplier: float
    """Standard deviation of the noise, divided by the largest norm of one contribution."""
    rate: float
    """Probability with which a contribution is in the sample, in (0, 1]."""


@functools.lru_cache(maxsize=4096)
def epsilon_of(mechanism: Mechanism, times: int, delta: float, method: Method = "rdp") -> float:
    """Epsilon after a mechanism was applied several times.

    Parameters
    ----------
    mechanism : Mechanism
        The noise and the sampling.
    times : int
        How often it was applied, to the same data.
    delta : float
        Delta of the guarantee, in (0, 1).
    method : {"rdp", "pld"}
        The accountant.

    Returns
    -------
    float
        At least 0; infinite without noise.
    """
    if times == 0:
        return 0.0
    if mechanism.noise_multiplier == 0:
        return math.inf
    if method == "rdp":
        return _by_renyi(mechanism, times, delta)
    account = _accountant(method)
    with _quiet():
        account.compose(_event(mechanism), times)
        return float(account.get_epsilon(delta))


def worst_of(
    counted: Sequence[tuple[Mechanism, int]], delta: float, method: Method = "rdp"
) -> tuple[float, int]:
    """The largest epsilon of several mechanisms, each applied to data of its own, and whose it is.

    Renyi divergences bound every epsilon in milliseconds, privacy loss distributions take seconds: those whose
    bound is not above the largest epsilon so far are left out.

    Parameters
    ----------
    counted : sequence of (Mechanism, int)
        The mechanisms, and how often each was applied.
    delta, method
        As of `epsilon_of`.
    """
    bounds = [epsilon_of(own, times, delta, "rdp") for own, times in counted]
    largest, place = -1.0, 0
    for at in sorted(range(len(counted)), key=lambda at: -bounds[at]):
        if bounds[at] <= largest:
            break
        epsilon = epsilon_of(*counted[at], delta, method)
        if epsilon > largest:
            largest, place = epsilon, at
    return largest, place


@functools.lru_cache(maxsize=64)
def noise_for(
    epsilon: float, rate: float, times: int, delta: float, method: Method = "rdp"
) -> float:
    """The smallest noise multiplier, to 1e-4, with which epsilon is not exceeded.

    Parameters
    ----------
    epsilon : float
        More than 0.
    rate, times, delta, method
        As of `epsilon_of`.

    Raises
    ------
    ValueError
        If no noise multiplier up to a million does.
    """
    import dp_accounting

    def event(noise: float) -> Any:
        return dp_accounting.SelfComposedDpEvent(_event(Mechanism(noise, rate)), times)

    try:
        with _quiet():
            found = dp_accounting.calibrate_dp_mechanism(
                functools.partial(_accountant, method),
                event,
                epsilon,
                delta,
                dp_accounting.LowerEndpointAndGuess(0.0, 1.0),
                tol=_NOISE_TOLERANCE,
            )
    except dp_accounting.NoBracketIntervalFoundError:
        found = math.inf
    if not found <= _MOST_NOISE:
        raise ValueError(f"no noise gives epsilon {epsilon:g} at delta {delta:g}")
    return float(found)


def times_within(
    mechanism: Mechanism, epsilon: float, delta: float, most: int, method: Method = "rdp"
) -> int:
    """How often a mechanism can be applied, up to ``most`` times, before epsilon is exceeded."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if epsilon_of(mechanism, middle, delta, method) <= epsilon:
            low = middle
        else:
            high = middle - 1
    return low


def _by_renyi(mechanism: Mechanism, times: int, delta: float) -> float:
    """Epsilon by Renyi divergences, which add up: those of one application are computed once."""
    from dp_accounting import rdp

    orders, once = _divergences(mechanism)
    epsilon, _ = rdp.compute_epsilon(orders, times * once, delta)
    return float(epsilon)


@functools.lru_cache(maxsize=64)
def _divergences(mechanism: Mechanism) -> tuple[Any, Any]:
    """Renyi orders, and the divergence of one application at each; float64 [orders]."""
    account = _accountant("rdp")
    with _quiet():
        account.compose(_event(mechanism))
    return account.orders, account.rdp


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop dp-accounting's warnings of Renyi orders that it leaves out, which costs no correctness."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _event(mechanism: Mechanism) -> Any:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    if mechanism.rate == 1:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(mechanism.rate, gaussian)


def _accountant(method: Method) -> Any:
    """A new accountant of dp-accounting; importing it takes a second."""
    if method == "pld":
        from dp_accounting import pld

        return pld.PLDAccountant()
    from dp_accounting import rdp

    return rdp.RdpAccountant()
