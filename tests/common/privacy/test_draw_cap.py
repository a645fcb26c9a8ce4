"""The cap on a draw: how often it is reached, and that no more than that is lost of the claim."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from grandrounds.common.errors import PrivacyError
from grandrounds.common.privacy.accountant import calibrate_noise_multiplier, epsilon
from grandrounds.common.privacy.composition import composed_epsilon
from grandrounds.common.privacy.draw_cap import CUT_SHARE, cut_probability, draw_cap
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule


def reached(units: int, probability: Fraction, cap: int) -> Fraction:
    """P(Binomial(units, probability) >= cap), exactly."""
    return sum(
        (
            math.comb(units, drawn) * probability**drawn * (1 - probability) ** (units - drawn)
            for drawn in range(cap, units + 1)
        ),
        Fraction(0),
    )


@pytest.mark.parametrize(
    ("units", "q", "p", "cap"), [(30, 0.2, 1e-7, 20), (2500, 0.05, 1e-10, 201), (1, 0.5, 1e-9, 1), (40, 1.0, 1e-9, 40)]
)
def test_known_caps(units: int, q: float, p: float, cap: int) -> None:
    assert draw_cap(max_units=units, sampling_probability=q, probability=p) == cap


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.floats(1e-14, 0.1))
def test_the_cap_is_the_least_that_the_others_reach_so_rarely(units: int, q: float, p: float) -> None:
    cap = draw_cap(max_units=units, sampling_probability=q, probability=p)
    assert 1 <= cap <= units
    assert reached(units - 1, Fraction(q), cap) <= Fraction(p)
    if cap > 1:
        assert reached(units - 1, Fraction(q), cap - 1) > Fraction(p) * (1 - Fraction(1, 10**8))


def test_the_caps_of_a_million_patients_take_no_time_and_leave_little_to_spare() -> None:
    cap = draw_cap(max_units=10**9, sampling_probability=1e-7, probability=1e-12)
    assert binom.sf(cap - 1, 10**9 - 1, 1e-7) <= 1e-12 < binom.sf(cap - 2, 10**9 - 1, 1e-7)


# One release on ``OTHERS`` units whose gradients are 1, and perhaps one whose gradient is -1: outputs are mixtures of
# Gaussians on a line, so that divergences can be integrated.
OTHERS, Q, Z = 12, 0.9, 0.5
GRID = np.linspace(-12, 24, 20_001)


def released(cap: int, *, present: bool) -> np.ndarray:
    """The density of a capped release, with or without the unit."""
    density = np.zeros_like(GRID)
    for others in range(OTHERS + 1):
        weight = binom.pmf(others, OTHERS, Q)
        kept = min(others, cap)
        density += weight * (1 - Q * present) * norm.pdf(GRID, kept, Z)
        if present:
            stays = min(1.0, cap / (others + 1))
            density += weight * Q * stays * norm.pdf(GRID, min(others, cap - 1) - 1, Z)
            density += weight * Q * (1 - stays) * norm.pdf(GRID, cap, Z)
    return density


def divergence(p: np.ndarray, q: np.ndarray, at: float) -> float:
    return float(np.maximum(p - math.exp(at) * q, 0).sum() * (GRID[1] - GRID[0]))


def uncapped_bound(at: float) -> float:
    """The divergence of the dominating pair, in the worse direction: the claim of a release without a cap."""
    one, other = norm.pdf(GRID, 0, Z), (1 - Q) * norm.pdf(GRID, 0, Z) + Q * norm.pdf(GRID, 1, Z)
    return max(divergence(one, other, at), divergence(other, one, at))


@pytest.mark.parametrize("cap", [4, 8, 11, OTHERS])
@pytest.mark.parametrize("at", [0.0, 1.0, 3.0, 5.0])
def test_a_cap_costs_no_more_than_the_probability_that_the_others_reach_it(cap: int, at: float) -> None:
    with_unit, without = released(cap, present=True), released(cap, present=False)
    worst = max(divergence(with_unit, without, at), divergence(without, with_unit, at))
    assert worst <= uncapped_bound(at) + binom.sf(cap - 1, OTHERS, Q) + 1e-9


def test_that_cost_is_real_and_a_claim_without_it_would_be_false() -> None:
    with_unit, without = released(8, present=True), released(8, present=False)
    worst = max(divergence(with_unit, without, 3.0), divergence(without, with_unit, 3.0))
    assert worst > 2 * uncapped_bound(3.0)


def schedule(cut: float, *, trust: str = "distributed", sites: int = 1, count: int = 24) -> Schedule:
    event = SampledGaussianRelease(
        sampling_probability=0.2,
        noise_multiplier=1.2,
        trust="local" if trust == "local" else "distributed",
        sites_per_patient=sites,
    )
    return Schedule(event=event, count=count, cut_probability=cut)


@pytest.mark.parametrize(("trust", "sites"), [("distributed", 1), ("distributed", 2), ("local", 2)])
def test_what_cutting_costs_comes_off_delta_once_for_each_release_and_site(trust: str, sites: int) -> None:
    delta, cut = 1e-3, 1e-6
    left = delta - 24 * sites * cut
    capped, uncapped = schedule(cut, trust=trust, sites=sites), schedule(0.0, trust=trust, sites=sites)
    assert epsilon(capped, delta=delta) == epsilon(uncapped, delta=left)
    assert composed_epsilon([capped], delta=delta) == composed_epsilon([uncapped], delta=left)
    assert epsilon(capped, delta=delta).epsilon > epsilon(uncapped, delta=delta).epsilon


def test_a_schedule_that_cuts_more_than_delta_allows_has_no_claim() -> None:
    with pytest.raises(PrivacyError, match="delta"):
        epsilon(schedule(1e-4), delta=1e-3)
    assert composed_epsilon([schedule(1e-4)], delta=1e-3) == math.inf


def test_all_cutting_costs_the_stated_share_and_hardly_any_epsilon() -> None:
    delta = 5e-4
    cut = cut_probability(delta=delta, releases=24, sites_per_patient=2)
    assert math.isclose(schedule(cut, sites=2).cut_delta, CUT_SHARE * delta)
    with_cut, without = (epsilon(schedule(at), delta=delta).epsilon for at in (cut, 0.0))
    assert without < with_cut < without + 1e-3


def test_calibrated_noise_covers_what_cutting_costs() -> None:
    cut = cut_probability(delta=1e-5, releases=24, sites_per_patient=1)
    z = calibrate_noise_multiplier(
        target_epsilon=2.0, delta=1e-5, sampling_probability=0.2, steps=24, trust="distributed", cut_probability=cut
    )
    event = SampledGaussianRelease(sampling_probability=0.2, noise_multiplier=z, trust="distributed")
    assert epsilon(Schedule(event=event, count=24, cut_probability=cut), delta=1e-5).epsilon <= 2.0


@pytest.mark.parametrize("wrong", [-1e-9, 1.1, math.nan])
def test_a_probability_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(PrivacyError, match="probability"):
        schedule(wrong)
