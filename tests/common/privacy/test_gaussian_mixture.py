import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, from_mixture_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr, logsumexp, ndtr
from scipy.stats import binom, norm

from grandrounds.common.privacy import gaussian_mixture
from grandrounds.common.privacy.gaussian_mixture import binomial_mixture_pld


@pytest.mark.parametrize(
    "q, z, m, steps, interval",
    [(0.4, 1.642, 5, 24, 1e-2), (0.01, 1.0, 3, 1000, 1e-2), (0.001, 0.7, 2, 100, 1e-2), (0.1, 4.0, 50, 24, 0.1)],
)
def test_the_composed_loss_is_that_of_dp_accounting_s_own_construction(
    q: float, z: float, m: int, steps: int, interval: float
) -> None:
    weights = [float(p) for p in binom.pmf(range(m + 1), m, q)]
    theirs = from_mixture_gaussian_mechanism(z, list(range(m + 1)), weights, value_discretization_interval=interval)
    ours = binomial_mixture_pld(noise_multiplier=z, contributions=m, sampling_probability=q, interval=interval)
    for delta in (1e-3, 1e-5, 1e-8):
        expected = theirs.self_compose(steps).get_epsilon_for_delta(delta)
        assert ours.self_compose(steps).get_epsilon_for_delta(delta) == pytest.approx(expected, rel=1e-6)


def test_one_contribution_is_the_sampled_gaussian() -> None:
    theirs = from_gaussian_mechanism(1.3, sampling_prob=0.2, value_discretization_interval=1e-3).self_compose(30)
    ours = binomial_mixture_pld(noise_multiplier=1.3, contributions=1, sampling_probability=0.2, interval=1e-3)
    composed = ours.self_compose(30)
    for delta in (1e-2, 1e-5, 1e-9):
        assert composed.get_epsilon_for_delta(delta) == pytest.approx(theirs.get_epsilon_for_delta(delta), rel=1e-7)


def costs_enough(q: float, z: float, m: int, deviations: float) -> bool:
    """Whether one release is charged what an adversary gains who calls "present" above, or "absent" below, a threshold.

    Epsilon is the loss at so many deviations above the mean contribution, where such thresholds gain the most.
    """
    counts = np.arange(m + 1)
    middle = m * q + deviations * math.sqrt(z * z + m * q * (1 - q))
    log_weights = binom.logpmf(counts, m, q)
    epsilon = max(float(logsumexp(log_weights + (2 * counts * middle - counts**2) / (2 * z * z))), 0.0)
    thresholds = np.linspace(-10 * z, middle + 10 * z, 1001)
    distances = (counts - thresholds[:, None]) / z
    from_presence = ndtr(distances) @ np.exp(log_weights) - bounded_exp(epsilon + norm.logsf(thresholds / z))
    log_below = logsumexp(log_weights + log_ndtr(-distances), axis=1)
    from_absence = ndtr(thresholds / z) - bounded_exp(epsilon + log_below)
    truth = max(float(from_presence.max()), float(from_absence.max()))
    interval = min(max(1e-2, epsilon / 1000), 100.0)  # exp of one has to be a number: beyond 709 it is none
    pld = binomial_mixture_pld(noise_multiplier=z, contributions=m, sampling_probability=q, interval=interval)
    return bool(pld.get_delta_for_epsilon(epsilon) >= truth * (1 - 1e-6) - 1e-12)


def bounded_exp(exponents: np.ndarray) -> np.ndarray:
    """Beyond 50 nothing is gained, whatever the value."""
    return np.exp(np.minimum(exponents, 50.0))


@given(
    st.floats(0.001, 0.95), st.floats(0.5, 50), st.integers(1, 1000), st.floats(-4, 7), st.sampled_from([1e-24, 1e-3])
)
@settings(deadline=None, max_examples=50)
def test_one_release_never_costs_less_than_an_adversary_gains_wherever_unlikely_counts_are_cut_off(
    q: float, z: float, m: int, deviations: float, negligible: float
) -> None:
    with mock.patch.object(gaussian_mixture, "_NEGLIGIBLE", negligible):
        assert costs_enough(q, z, m, deviations)


class Forgetful(gaussian_mixture._Pair):
    """Leaves unlikely counts out without counting them as a loss."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._beyond = 0.0


class Renormalised(gaussian_mixture._Pair):
    """Spreads the probability of unlikely counts over the likely ones."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._log_weights = self._log_weights - logsumexp(self._log_weights)
        self._beyond = 0.0


@pytest.mark.parametrize("broken", [Forgetful, Renormalised])
def test_unlikely_counts_that_cost_nothing_are_noticed(
    broken: type[gaussian_mixture._Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaussian_mixture, "_NEGLIGIBLE", 1e-3)
    assert costs_enough(0.1, 1.0, 50, 4.0)
    monkeypatch.setattr(gaussian_mixture, "_Pair", broken)
    assert not costs_enough(0.1, 1.0, 50, 4.0)


def test_a_thousand_contributions_take_a_grid_no_longer_than_the_likely_ones_need() -> None:
    """Were it to reach the loss of all thousand at once, it would have 50 million points here."""
    pld = binomial_mixture_pld(noise_multiplier=1.0, contributions=1000, sampling_probability=0.001, interval=1e-2)
    assert pld._pmf_remove.size < 100_000
