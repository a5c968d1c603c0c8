"""Epsilon against published figures, each with the conversion that it uses."""

from __future__ import annotations

import math

import pytest

from flsimulation.privacy.accountant import (
    Mechanism,
    Method,
    epsilon_of,
    noise_for,
    times_within,
    worst_of,
)

DELTA = 1e-5


def of_epochs(noise: float, batch: int, examples: int, epochs: int) -> tuple[Mechanism, int]:
    """DP-SGD's mechanism and steps, counted as in TF-privacy's tutorial."""
    return Mechanism(noise, batch / examples), math.ceil(epochs * examples / batch)


def test_opacus_figures_of_its_own_tests() -> None:
    """opacus/tests/accountants_test.py: RDP 7.32911 and PRV 6.777395 (within PRV's error of PLD)."""
    mechanism = Mechanism(1.5, 0.04)
    assert epsilon_of(mechanism, 90 * 25, DELTA) == pytest.approx(7.3291, abs=5e-4)
    assert epsilon_of(mechanism, 90 * 25, DELTA, "pld") == pytest.approx(6.7774, abs=0.011)


def test_opacus_noise_for_epsilon_8() -> None:
    """The same file: get_noise_multiplier(epsilon 8, q .04, 90 epochs) is 1.416 by RDP."""
    assert noise_for(8.0, 0.04, 2250, DELTA) == pytest.approx(1.416, abs=1e-3)


def test_tf_privacy_s_documented_figure() -> None:
    """compute_dp_sgd_privacy(N 60000, B 150, noise 1.3, 15 epochs, delta 1e-5)."""
    assert epsilon_of(*of_epochs(1.3, 150, 60_000, 15), DELTA) == pytest.approx(0.7242, abs=5e-4)


@pytest.mark.parametrize(
    ("noise", "epochs", "old", "rdp", "pld"),
    [(1.1, 60, 3.01, 2.597, 2.391), (1.3, 15, 1.19, 0.954, 0.869), (0.7, 45, 7.10, 6.320, 5.643)],
)
def test_tf_privacy_s_table_of_mnist(
    noise: float, epochs: int, old: float, rdp: float, pld: float
) -> None:
    """Batches of 256 of 60,000; the published epsilons are by the old conversion, which is larger.

    The figures by privacy loss distributions depend on how these are discretized, here by 1e-4.
    """
    mechanism, steps = of_epochs(noise, 256, 60_000, epochs)
    assert epsilon_of(mechanism, steps, DELTA) == pytest.approx(rdp, abs=2e-3)
    assert epsilon_of(mechanism, steps, DELTA, "pld") == pytest.approx(pld, rel=6e-3)
    assert by_mironov(mechanism, steps) == pytest.approx(old, abs=0.01)


def by_mironov(mechanism: Mechanism, steps: int) -> float:
    """Epsilon by the conversion of Mironov (2017): min over orders of rdp + log(1 / delta) / (order - 1)."""
    import dp_accounting
    from dp_accounting import rdp

    orders = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))
    account = rdp.RdpAccountant(orders)
    gaussian = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    account.compose(dp_accounting.PoissonSampledDpEvent(mechanism.rate, gaussian), steps)
    return min(r - math.log(DELTA) / (o - 1) for o, r in zip(orders, account._rdp, strict=True))


def test_one_release_of_everybody() -> None:
    """dp-accounting's own test of RDP; the exact epsilon is less."""
    mechanism = Mechanism(4.530877117, 1.0)
    assert epsilon_of(mechanism, 1, 1e-6) == pytest.approx(1.0, abs=1e-6)
    assert epsilon_of(mechanism, 1, 1e-6, "pld") == pytest.approx(0.9274, abs=1e-3)


@pytest.mark.parametrize(("epsilon", "noise"), [(2, 7.19), (4, 4.04), (8, 2.33)])
def test_noise_of_twenty_rounds_of_all_clients(epsilon: float, noise: float) -> None:
    found = noise_for(epsilon, 1.0, 20, 1e-3)
    assert found == pytest.approx(noise, abs=6e-3)
    assert epsilon_of(Mechanism(found, 1.0), 20, 1e-3) <= epsilon


def test_a_tight_accountant_never_says_more_than_a_loose_one() -> None:
    for noise, rate, times in [(0.8, 0.01, 500), (2.0, 0.1, 40), (1.2, 1.0, 3)]:
        mechanism = Mechanism(noise, rate)
        assert epsilon_of(mechanism, times, DELTA, "pld") < epsilon_of(mechanism, times, DELTA)


def test_nothing_released_costs_nothing_and_no_noise_hides_nothing() -> None:
    assert epsilon_of(Mechanism(1.0, 0.5), 0, DELTA) == 0
    assert epsilon_of(Mechanism(0.0, 0.5), 1, DELTA) == math.inf


def test_the_rounds_that_a_budget_allows() -> None:
    mechanism = Mechanism(7.19, 1.0)
    allowed = times_within(mechanism, 1.0, 1e-3, 20)
    assert 0 < allowed < 20
    assert epsilon_of(mechanism, allowed, 1e-3) <= 1.0 < epsilon_of(mechanism, allowed + 1, 1e-3)
    assert times_within(mechanism, 100.0, 1e-3, 20) == 20
    assert times_within(mechanism, 1e-6, 1e-3, 20) == 0


@pytest.mark.parametrize("method", ["rdp", "pld"])
def test_the_worst_of_several_mechanisms(method: Method) -> None:
    """The second bound by Renyi divergences is above the first's tight epsilon: both have to be computed."""
    counted = [(Mechanism(1.0, 0.5), 9), (Mechanism(1.0, 1.0), 3), (Mechanism(1.0, 0.1), 10)]
    every = [epsilon_of(own, times, 1e-3, method) for own, times in counted]
    assert worst_of(counted, 1e-3, method) == (max(every), every.index(max(every)))
    assert worst_of(counted[::-1], 1e-3, method)[0] == max(every)
    assert worst_of([(Mechanism(1.0, 0.5), 0)], 1e-3, method) == (0.0, 0)
