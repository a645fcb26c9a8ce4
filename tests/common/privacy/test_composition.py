import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
    from_mixture_gaussian_mechanism,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from support.places import VECTORS
from support.study.closed_form import gaussian_epsilon

from grandrounds.common.privacy import composition, dominating_pair
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.common.privacy.composition import composed_epsilon, least_epsilon, recomputed_epsilon
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.privacy.trust import Trust

Case = tuple[float, float, int]  # q, z, steps
FINE = 1e-6
CASES = json.loads((VECTORS / "accountant.json").read_text())["cases"]
_INTERVAL = 1e-3  # of the library's, fine enough for so few releases
_COARSER = 3 * _INTERVAL  # for mixtures, of which it takes seconds to make one


def _schedule(q: float, z: float, count: int = 1, trust: Trust = "local", m: int = 1) -> Schedule:
    event = SampledGaussianRelease(sampling_probability=q, noise_multiplier=z, trust=trust, sites_per_patient=m)
    return Schedule(event=event, count=count)


def _analytic_gaussian_epsilon(noise_multipliers: Sequence[float], delta: float) -> float:
    return gaussian_epsilon(math.sqrt(math.fsum(1 / z**2 for z in noise_multipliers)), delta)


@given(
    st.lists(st.tuples(st.floats(0.5, 50), st.integers(1, 1000)), min_size=1, max_size=20),
    st.floats(-12, -2).map(lambda exponent: 10**exponent),
)
@settings(deadline=None, max_examples=60)
def test_without_sampling_epsilon_is_the_closed_form_and_never_below(
    gaussians: list[tuple[float, int]], delta: float
) -> None:
    truth = _analytic_gaussian_epsilon([z for z, count in gaussians for _ in range(count)], delta)
    ours = composed_epsilon([_schedule(1.0, z, count) for z, count in gaussians], delta=delta)
    assert truth * (1 - 1e-12) <= ours <= truth * (1 + 6e-4) + 1e-5


def test_four_thousand_distinct_gaussians_are_the_closed_form_and_never_below() -> None:
    noise_multipliers = np.geomspace(40.0, 160.0, 4000).tolist()
    truth = _analytic_gaussian_epsilon(noise_multipliers, 1e-9)
    ours = composed_epsilon([_schedule(1.0, z) for z in noise_multipliers], delta=1e-9)
    assert truth <= ours <= truth * (1 + 6e-4)


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_very_many_identical_gaussians_are_the_closed_form_even_at_the_least_delta(count: int) -> None:
    truth = _analytic_gaussian_epsilon([200.0 / math.sqrt(count)], 1e-12)
    assert truth <= composed_epsilon([_schedule(1.0, 200.0, count)], delta=1e-12) <= truth * (1 + 6e-4)


SETS: list[tuple[list[Case], float]] = [
    ([(0.1, 2.0, 30), (0.2, 1.5, 10), (0.05, 1.0, 40)], 1e-5),
    ([(0.01, 0.8, 200), (0.3, 3.0, 20), (1.0, 8.0, 5)], 1e-6),
    ([(0.5, 2.5, 3), (0.4, 2.0, 2), (0.001, 0.6, 1000)], 1e-3),
]


@pytest.mark.parametrize("cases, delta", SETS)
def test_different_sampled_gaussians_agree_with_dp_accounting(cases: list[Case], delta: float) -> None:
    theirs = _library([_library_gaussian(*case) for case in cases], delta)
    ours = composed_epsilon(list(itertools.starmap(_schedule, cases)), delta=delta)
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours >= composed_epsilon(list(itertools.starmap(_schedule, cases)), delta=delta, tolerance=FINE)


def test_a_person_at_several_sites_agrees_with_dp_accounting_under_both_kinds_of_trust() -> None:
    mixtures = [(0.1, 2.0, 2, 10), (0.05, 1.5, 3, 20), (0.2, 3.0, 5, 5)]
    plds = [_library_mixture(q, z, m, count) for q, z, m, count in mixtures]
    plds.append(_library_gaussian(0.1, 2.0, 2 * 7, interval=_COARSER))
    schedules = [_schedule(q, z, count, "distributed", m) for q, z, m, count in mixtures]
    schedules.append(_schedule(0.1, 2.0, 7, "local", 2))
    assert composed_epsilon(schedules, delta=1e-5) == pytest.approx(_library(plds, 1e-5), rel=1e-3)


def test_without_sampling_a_person_s_contributions_to_one_release_add_up() -> None:
    schedules = [_schedule(1.0, 20.0, 3, "distributed", 4), _schedule(1.0, 10.0, 2, "local", 4)]
    truth = _analytic_gaussian_epsilon([5.0] * 3 + [10.0] * 8, 1e-5)
    assert truth <= composed_epsilon(schedules, delta=1e-5) <= truth * (1 + 6e-4)


@pytest.mark.parametrize("cases, delta", SETS)
def test_epsilon_lies_within_the_bounds_of_opacus_prv(cases: list[Case], delta: float) -> None:
    from opacus.accountants import PRVAccountant  # it loads torch

    prv = PRVAccountant()
    prv.history = [(z, q, steps) for q, z, steps in cases]
    error = 0.01
    upper = prv.get_epsilon(delta, eps_error=error, delta_error=delta / 1000)  # true epsilon is within 2 errors below
    assert upper - 2 * error <= composed_epsilon(list(itertools.starmap(_schedule, cases)), delta=delta)
    assert composed_epsilon(list(itertools.starmap(_schedule, cases)), delta=delta) <= upper + error


@pytest.mark.parametrize("q, z, steps, delta, trust, m, expected", CASES)
def test_a_recomputed_epsilon_agrees_with_the_published_libraries(
    q: float, z: float, steps: int, delta: float, trust: Trust, m: int, expected: float
) -> None:
    assert recomputed_epsilon(_schedule(q, z, steps, trust, m), delta=delta) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("trust, m", [("local", 1), ("local", 3), ("distributed", 2), ("distributed", 5)])
@pytest.mark.parametrize(
    "q, z, steps, delta", [(0.4, 1.642, 24, 5e-4), (1.0, 10.0, 50, 1e-5), (0.1, 4.0, 300, 1e-6), (0.25, 6.0, 60, 1e-3)]
)
def test_a_recomputed_epsilon_agrees_with_the_claimed_one(
    q: float, z: float, steps: int, delta: float, trust: Trust, m: int
) -> None:
    schedule = _schedule(q, z, steps, trust, m)
    claimed = epsilon(schedule, delta=delta).epsilon
    assert recomputed_epsilon(schedule, delta=delta) == pytest.approx(claimed, rel=1e-3)


# Few are drawn of many, and what one release costs is rare and large: q, z, steps, delta.
RARE = [(24e-6, 0.4371, 24, 1e-7), (24e-6, 0.4622, 4, 1e-7), (24e-5, 0.3786, 24, 1e-6)]


@pytest.mark.parametrize("q, z, steps, delta", RARE)
def test_rare_and_large_losses_cost_no_more_than_dp_accounting_says(
    q: float, z: float, steps: int, delta: float
) -> None:
    schedule = _schedule(q, z, steps, "distributed")
    below, above = _library_bounds(q, z, steps, delta, interval=1e-3)
    ours = recomputed_epsilon(schedule, delta=delta)
    assert below <= ours <= above * (1 + 2e-4), "in both directions"
    assert above * (1 - 2e-3) <= least_epsilon(schedule, delta=delta) <= above


def _library_bounds(q: float, z: float, steps: int, delta: float, *, interval: float) -> tuple[float, float]:
    """dp_accounting's optimistic and pessimistic epsilon of sampled Gaussians."""
    plds = (
        from_gaussian_mechanism(
            z,
            sampling_prob=q,
            value_discretization_interval=interval,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        for pessimistic in (False, True)
    )
    below, above = (float(pld.self_compose(steps).get_epsilon_for_delta(delta)) for pld in plds)
    return below, above


@given(st.floats(0.5, 50), st.integers(1, 300), st.floats(-12, -2).map(lambda exponent: 10**exponent))
@settings(deadline=None, max_examples=30)
def test_a_certified_lower_bound_is_below_the_closed_form_and_hardly(z: float, count: int, delta: float) -> None:
    truth = _analytic_gaussian_epsilon([z] * count, delta)
    assert truth * (1 - 2e-3) - 1e-4 <= least_epsilon(_schedule(1.0, z, count), delta=delta) <= truth * (1 + 1e-12)


@pytest.mark.parametrize("q, z, steps, delta, trust, m, expected", CASES)
def test_a_certified_lower_bound_is_below_the_published_libraries_and_hardly(
    q: float, z: float, steps: int, delta: float, trust: Trust, m: int, expected: float
) -> None:
    found = least_epsilon(_schedule(q, z, steps, trust, m), delta=delta)
    assert expected * (1 - 5e-3) <= found <= expected * (1 + 1e-4)


def test_losses_of_cells_rounded_up_would_certify_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, truth = _schedule(1.0, 10.0, 50), _analytic_gaussian_epsilon([10.0] * 50, 1e-5)
    assert least_epsilon(schedule, delta=1e-5) <= truth
    below = dominating_pair.DominatingPair.discretised_below

    def rounded_up(self: Any, interval: float, *args: float) -> tuple[Any, float]:
        loss, offset = below(self, interval, *args)
        return loss, offset + interval

    monkeypatch.setattr(dominating_pair.DominatingPair, "discretised_below", rounded_up)
    assert least_epsilon(schedule, delta=1e-5) > truth


def test_what_wraps_into_the_window_and_is_not_taken_off_would_certify_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule, truth = _schedule(1.0, 10.0, 50), _analytic_gaussian_epsilon([10.0] * 50, 1e-5)
    chosen = composition._best_tilt
    monkeypatch.setattr(composition, "_best_tilt", lambda *args: (4 * chosen(*args)[0], chosen(*args)[1]))
    monkeypatch.setattr(composition, "_length", lambda *args: 0.0)
    assert least_epsilon(schedule, delta=1e-5) <= truth
    monkeypatch.setattr(composition._LossSum, "_wrapped", lambda self, losses: 0.0 * losses)
    assert least_epsilon(schedule, delta=1e-5) > truth


def _sampled(seed: int, number: int) -> list[Schedule]:
    generator = np.random.default_rng(seed)
    q, z = generator.uniform(0.005, 0.1, number), generator.uniform(0.8, 4.0, number)
    return [_schedule(float(a), float(b)) for a, b in zip(q, z, strict=True)]


@pytest.mark.parametrize("delta", [1e-3, 1e-10])
def test_many_sampled_gaussians_are_never_below_a_much_finer_grid_and_hardly_above(delta: float) -> None:
    fine = composed_epsilon(_sampled(1, 200), delta=delta, tolerance=FINE)
    assert fine <= composed_epsilon(_sampled(1, 200), delta=delta) <= fine * (1 + 6e-4)


def test_equal_releases_are_counted_however_they_are_listed() -> None:
    once = [_schedule(0.1, 2.0, 6), _schedule(0.2, 3.0, 4)]
    split = [_schedule(0.2, 3.0, 3), _schedule(0.1, 2.0, 4), _schedule(0.2, 3.0, 1), _schedule(0.1, 2.0, 2)]
    assert composed_epsilon(split, delta=1e-5) == pytest.approx(composed_epsilon(once, delta=1e-5), rel=1e-9)


def test_releases_that_cost_nothing_at_delta_have_an_epsilon_of_zero() -> None:
    assert composed_epsilon([_schedule(0.001, 10_000.0), _schedule(0.01, 5_000.0)], delta=1e-2) == 0.0


def test_bounded_losses_and_an_epsilon_in_the_thousands_are_still_bounded() -> None:
    truth = _analytic_gaussian_epsilon([0.1] * 100, 1e-5)
    assert truth <= composed_epsilon([_schedule(1.0, 0.1, 100)], delta=1e-5) <= truth * (1 + 6e-4)
    assert math.isfinite(composed_epsilon([_schedule(0.5, 0.1, 1000)], delta=1e-5))
    assert math.isfinite(composed_epsilon([_schedule(0.9999, 1.642, 24, "distributed", 100)], delta=1e-3))


@pytest.mark.parametrize("factor", [0.2, 0.5, 2.0, 5.0])
def test_a_tilt_far_from_the_best_costs_tightness_and_never_soundness(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    chosen = composition._best_tilt
    truth = _analytic_gaussian_epsilon(NOISE_MULTIPLIERS, 1e-9)
    few, known = _schedule(1.0, 10.0, 4), _analytic_gaussian_epsilon([10.0] * 4, 1e-9)
    monkeypatch.setattr(composition, "_best_tilt", lambda *args: (factor * chosen(*args)[0], chosen(*args)[1]))
    assert least_epsilon(few, delta=1e-9) <= known
    assert truth <= composed_epsilon(GAUSSIANS, delta=1e-9) <= truth * 3


NOISE_MULTIPLIERS = np.geomspace(10.0, 40.0, 100).tolist()
GAUSSIANS = [_schedule(1.0, z) for z in NOISE_MULTIPLIERS]


def test_noise_multipliers_of_very_many_releases_are_rounded_down_at_little_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(composition, "MANY", 99)
    truth = _analytic_gaussian_epsilon(NOISE_MULTIPLIERS, 1e-5)
    rounded = composed_epsilon(GAUSSIANS, delta=1e-5, tolerance=FINE)
    assert truth * (1 + 1e-5) <= rounded <= truth * (1 + 1e-3), "rounded, and down"
    exact = composed_epsilon(_sampled(2, 100), delta=1e-5, tolerance=FINE)
    monkeypatch.setattr(composition, "MANY", 100)
    assert composed_epsilon(_sampled(2, 100), delta=1e-5, tolerance=FINE) < exact


def test_the_least_noise_multiplier_is_not_rounded_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "MANY", 1)
    noise_multipliers = [0.1, 0.10002]
    truth = _analytic_gaussian_epsilon(noise_multipliers, 1e-5)
    assert truth <= composed_epsilon([_schedule(1.0, z) for z in noise_multipliers], delta=1e-5) <= truth * (1 + 1e-3)


def test_no_release_costs_nothing() -> None:
    assert composed_epsilon([], delta=1e-5) == 0.0


def _below_the_truth(noise_multipliers: Sequence[float] = NOISE_MULTIPLIERS, tolerance: float = FINE) -> bool:
    epsilon = composed_epsilon([_schedule(1.0, z) for z in noise_multipliers], delta=1e-5, tolerance=tolerance)
    return epsilon < _analytic_gaussian_epsilon(noise_multipliers, 1e-5)


def test_noise_multipliers_rounded_up_would_claim_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "MANY", 99)
    down = composition._rounded_down
    assert not _below_the_truth()
    monkeypatch.setattr(composition, "_rounded_down", lambda z: down(z) * composition._RATIO)
    assert _below_the_truth()


def test_losses_rounded_down_would_claim_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = dominating_pair._connected
    assert not _below_the_truth(tolerance=composition.TOLERANCE)
    monkeypatch.setattr(dominating_pair, "_connected", lambda *args: np.append(connected(*args)[1:], 0.0))
    assert _below_the_truth(tolerance=composition.TOLERANCE)


def test_a_tail_that_is_cut_and_not_counted_would_claim_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "_CUT", 0.3)
    assert not _below_the_truth([3.0])
    add = composition._LossSum.add

    def forgetting(self: Any, loss: Any, count: int) -> None:
        add(self, dominating_pair.DiscreteLoss(loss.first, loss.pmf, 0.0), count)

    monkeypatch.setattr(composition._LossSum, "add", forgetting)
    assert _below_the_truth([3.0])


def test_the_cut_tails_of_equal_releases_count_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "_CUT", 0.3)
    almost_equal = composed_epsilon([_schedule(1.0, 10.0 + i * 1e-9) for i in range(50)], delta=1e-5)
    assert composed_epsilon([_schedule(1.0, 10.0, 50)], delta=1e-5) == pytest.approx(almost_equal, rel=1e-6)


def test_what_wraps_around_and_is_not_counted_would_claim_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "_WRAPPED", 0.3)
    assert not _below_the_truth()
    monkeypatch.setattr(composition._LossSum, "_probability_above", lambda self, loss: 0.0)
    assert _below_the_truth()


def test_adding_a_person_alone_would_claim_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    both = composed_epsilon(_sampled(1, 50), delta=1e-5)
    discretised = dominating_pair.DominatingPair.discretised
    monkeypatch.setattr(
        dominating_pair.DominatingPair, "discretised", lambda self, *args: (discretised(self, *args)[1],) * 2
    )
    assert composed_epsilon(_sampled(1, 50), delta=1e-5) < both


def test_where_nothing_can_be_certified_epsilon_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "_CUT", 2.0)
    assert math.isinf(composed_epsilon(GAUSSIANS, delta=1e-5))


def _library(plds: Sequence[PrivacyLossDistribution], delta: float) -> float:
    composed = plds[0]
    for pld in plds[1:]:
        composed = composed.compose(pld)
    return float(composed.get_epsilon_for_delta(delta))


def _library_gaussian(q: float, z: float, count: int, interval: float = _INTERVAL) -> PrivacyLossDistribution:
    one = from_gaussian_mechanism(z, sampling_prob=q, value_discretization_interval=interval)
    return one.self_compose(count)


def _library_mixture(q: float, z: float, m: int, count: int) -> PrivacyLossDistribution:
    weights = [float(p) for p in binom.pmf(range(m + 1), m, q)]
    one = from_mixture_gaussian_mechanism(z, list(range(m + 1)), weights, value_discretization_interval=_COARSER)
    return one.self_compose(count)
