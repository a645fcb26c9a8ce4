"""Renyi costs and budgets of studies chosen one after another: upper bounds, lower bounds, and the conversion."""

import itertools
import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant, compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import binom, norm
from support.study.closed_form import gaussian_epsilon

from grandrounds.common.errors import PrivacyError
from grandrounds.common.privacy.composition import recomputed_epsilon
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.privacy.filters import _Loss, rdp_budget, rdp_cost
from grandrounds.common.privacy.trust import Trust


def _schedule(q: float, z: float, count: int = 1, trust: Trust = "local", m: int = 1) -> Schedule:
    event = SampledGaussianRelease(sampling_probability=q, noise_multiplier=z, trust=trust, sites_per_patient=m)
    return Schedule(event=event, count=count)


@pytest.mark.parametrize("order", [2, 3, 8, 32, 256, 1024])
@pytest.mark.parametrize("q, z", [(0.01, 1.0), (0.4, 1.9), (1e-4, 4.0), (0.3, 0.1), (0.999, 3.0)])
def test_a_sampled_gaussian_costs_what_dp_accounting_says_and_never_less(q: float, z: float, order: int) -> None:
    library = RdpAccountant([order])
    library.compose(dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z)), 100)
    theirs = float(library._rdp[0])
    ours = rdp_cost(_schedule(q, z, 100), order=order)
    assert theirs <= ours <= theirs * (1 + 2e-9) + 100 * 3e-11


@pytest.mark.parametrize("order", [2, 17, 1024])
def test_without_sampling_sites_multiply_the_releases_or_the_sensitivity(order: int) -> None:
    one = order / (2 * 10.0**2)
    assert rdp_cost(_schedule(1.0, 10.0, 50), order=order) == pytest.approx(50 * one, rel=1e-8)
    assert rdp_cost(_schedule(1.0, 10.0, 50, "local", 3), order=order) == pytest.approx(3 * 50 * one, rel=1e-8)
    assert rdp_cost(_schedule(1.0, 10.0, 50, "distributed", 3), order=order) == pytest.approx(9 * 50 * one, rel=1e-8)


@pytest.mark.parametrize("q, z, m, order", [(0.1, 1.0, 2, 3), (0.4, 1.6, 3, 4), (0.01, 0.7, 4, 2), (0.9, 5.0, 3, 5)])
def test_contributions_that_mix_cost_the_sum_over_all_their_combinations(
    q: float, z: float, m: int, order: int
) -> None:
    # E_Q (P / Q)^a is the mean of exp(sum_{i < k} j_i j_k / z^2) over independent Binomial(m, q) counts j_1 .. j_a.
    weights = binom.pmf(range(m + 1), m, q)
    moment = math.fsum(
        math.prod(weights[list(counts)]) * math.exp((sum(counts) ** 2 - sum(j * j for j in counts)) / (2 * z * z))
        for counts in itertools.product(range(m + 1), repeat=order)
    )
    removed = math.log(moment) / (order - 1)
    assert rdp_cost(_schedule(q, z, 1, "distributed", m), order=order) == pytest.approx(removed, rel=1e-6)


def _divergences(q: float, z: float, m: int, order: int) -> tuple[float, float]:
    """Of order ``order``, by the trapezoidal rule: of the sum with a person from that without, and the reverse."""
    counts = np.arange(m + 1)
    x = np.linspace(-60 * z, order * m + 40 * z, 40_001)[:, None]
    with_person = logsumexp(binom.logpmf(counts, m, q) + norm.logpdf(x, loc=counts, scale=z), axis=1)
    without = norm.logpdf(x[:, 0], scale=z)
    step = math.log(float(x[1, 0] - x[0, 0]))
    removed = logsumexp(order * with_person + (1 - order) * without) + step
    added = logsumexp(order * without + (1 - order) * with_person) + step
    return float(removed) / (order - 1), float(added) / (order - 1)


@given(st.floats(1e-4, 0.999), st.floats(0.5, 20), st.integers(1, 5), st.integers(2, 40))
@settings(deadline=None, max_examples=25)
def test_neither_a_person_added_nor_one_removed_costs_more(q: float, z: float, m: int, order: int) -> None:
    cost = rdp_cost(_schedule(q, z, 1, "distributed", m), order=order)
    worse = max(_divergences(q, z, m, order))
    assert worse * (1 - 1e-9) - 1e-10 <= cost <= worse * 1.05 + 1e-4


@pytest.mark.parametrize(
    "q, z, m, order", [(0.1, 1.0, 2, 3), (0.4, 1.6, 3, 40), (1e-3, 2.0, 5, 10), (0.9, 9.0, 2, 200)]
)
def test_the_divergence_of_a_person_added_is_bounded_and_hardly_exceeded(
    q: float, z: float, m: int, order: int
) -> None:
    event = _schedule(q, z, 1, "distributed", m).event
    _, added = _divergences(q, z, m, order)
    bound = _Loss(event, m).log_moment_added(order) / (order - 1)
    assert added <= bound <= added * 1.01 + 1e-6


def test_a_cost_grows_with_the_releases_and_with_the_order() -> None:
    assert rdp_cost(_schedule(0.1, 2.0, 30), order=8) == pytest.approx(30 * rdp_cost(_schedule(0.1, 2.0), order=8))
    costs = [rdp_cost(_schedule(0.1, 2.0, 30, "distributed", 2), order=order) for order in (2, 3, 5, 9, 17)]
    assert costs == sorted(set(costs))


def test_a_person_at_each_of_a_thousand_sites_has_a_cost() -> None:
    # All thousand at once would cost 8 * 1000^2 / (2 * 100^2); the mean number of ten costs less than what happens.
    assert 8 * 10**2 / (2 * 100**2) < rdp_cost(_schedule(0.01, 100.0, 1, "distributed", 1000), order=8) < 1.0


@given(st.floats(0.1, 50), st.floats(-12, -1).map(lambda exponent: 10**exponent), st.integers(2, 1024))
@settings(deadline=None)
def test_a_budget_is_what_converts_to_its_epsilon_and_no_more(epsilon: float, delta: float, order: int) -> None:
    try:
        budget = rdp_budget(epsilon=epsilon, delta=delta, order=order)
    except PrivacyError:
        assert _converted(1e-9, delta, order) > epsilon * (1 - 1e-6)
    else:
        assert epsilon * (1 - 1e-8) - 1e-6 <= _converted(budget, delta, order) <= epsilon


def _converted(rdp: float, delta: float, order: int) -> float:
    """Canonne, Kamath and Steinke 2020, Proposition 12, as stated."""
    return rdp + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)


def test_a_budget_agrees_with_dp_accounting() -> None:
    budget = rdp_budget(epsilon=1.0, delta=1e-5, order=32)
    assert compute_epsilon([32], [budget], 1e-5)[0] == pytest.approx(1.0, rel=1e-8)


@pytest.mark.parametrize("trust, m", [("local", 1), ("local", 2), ("distributed", 2)])
def test_a_schedule_within_the_budget_is_within_epsilon(trust: Trust, m: int) -> None:
    epsilon, delta, order = 3.0, 1e-5, 10
    budget = rdp_budget(epsilon=epsilon, delta=delta, order=order)
    for q, z in ((1.0, 40.0), (0.2, 8.0), (0.02, 1.5)):
        releases = int(budget / rdp_cost(_schedule(q, z, 1, trust, m), order=order))
        assert recomputed_epsilon(_schedule(q, z, releases, trust, m), delta=delta) <= epsilon


def test_the_budget_of_the_best_order_loses_little_against_the_exact_gaussian() -> None:
    delta, order = 1e-5, 12
    budget = rdp_budget(epsilon=2.0, delta=delta, order=order)
    mu = math.sqrt(2 * budget / order)  # of the Gaussian that costs the budget
    assert 1.6 < gaussian_epsilon(mu, delta) <= 2.0


@pytest.mark.parametrize("order", [1, 1.5, 0, -3, 2.5, 1025, math.inf, math.nan])
def test_an_order_that_is_no_whole_number_from_2_to_1024_is_refused(order: float) -> None:
    with pytest.raises(PrivacyError, match="order"):
        rdp_cost(_schedule(0.1, 2.0), order=order)
    with pytest.raises(PrivacyError, match="order"):
        rdp_budget(epsilon=1.0, delta=1e-5, order=order)


@pytest.mark.parametrize("epsilon, delta", [(0.0, 1e-5), (-1.0, 1e-5), (math.inf, 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_a_budget_that_bounds_nothing_or_allows_nothing_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(PrivacyError, match="budget"):
        rdp_budget(epsilon=epsilon, delta=delta, order=8)


def test_an_order_whose_conversion_alone_exceeds_the_budget_is_refused() -> None:
    with pytest.raises(PrivacyError, match="order 2 leaves nothing"):
        rdp_budget(epsilon=1.0, delta=1e-5, order=2)
