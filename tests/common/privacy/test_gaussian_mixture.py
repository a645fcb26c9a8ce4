import math

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, from_mixture_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from grandrounds.common.privacy.gaussian_mixture import binomial_mixture_pld


@pytest.mark.parametrize("q, z, m, steps", [(0.4, 1.642, 5, 24), (0.01, 1.0, 3, 1000), (0.001, 0.7, 2, 100)])
def test_the_composed_loss_is_that_of_dp_accounting_s_own_construction(q: float, z: float, m: int, steps: int) -> None:
    weights = [float(p) for p in binom.pmf(range(m + 1), m, q)]
    theirs = from_mixture_gaussian_mechanism(z, list(range(m + 1)), weights, value_discretization_interval=1e-2)
    ours = binomial_mixture_pld(noise_multiplier=z, contributions=m, sampling_probability=q, interval=1e-2)
    for delta in (1e-3, 1e-5, 1e-8):
        expected = theirs.self_compose(steps).get_epsilon_for_delta(delta)
        assert ours.self_compose(steps).get_epsilon_for_delta(delta) == pytest.approx(expected, rel=1e-6)


def test_one_contribution_is_the_sampled_gaussian() -> None:
    theirs = from_gaussian_mechanism(1.3, sampling_prob=0.2, value_discretization_interval=1e-3).self_compose(30)
    ours = binomial_mixture_pld(noise_multiplier=1.3, contributions=1, sampling_probability=0.2, interval=1e-3)
    composed = ours.self_compose(30)
    for delta in (1e-2, 1e-5, 1e-9):
        assert composed.get_epsilon_for_delta(delta) == pytest.approx(theirs.get_epsilon_for_delta(delta), rel=1e-7)


@given(st.floats(0.001, 0.95), st.floats(0.5, 8), st.integers(1, 6), st.floats(0, 6))
@settings(deadline=None, max_examples=50)
def test_one_release_never_costs_less_than_its_hockey_stick_divergences(q: float, z: float, m: int, eps: float) -> None:
    weights = binom.pmf(range(m + 1), m, q)
    step = (m + 24 * z) / 200_000
    x = np.arange(-12 * z, m + 12 * z, step)
    none = norm.pdf(x, scale=z)
    some = sum(w * norm.pdf(x, loc=j, scale=z) for j, w in enumerate(weights))
    truth = max(np.maximum(some - math.exp(eps) * none, 0).sum(), np.maximum(none - math.exp(eps) * some, 0).sum())
    pld = binomial_mixture_pld(noise_multiplier=z, contributions=m, sampling_probability=q, interval=1e-2)
    assert pld.get_delta_for_epsilon(eps) >= truth * step * (1 - 1e-6) - 1e-12
