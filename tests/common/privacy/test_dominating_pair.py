import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from grandrounds.common.privacy.dominating_pair import DiscreteLoss, DominatingPair
from grandrounds.common.privacy.events import SampledGaussianRelease
from grandrounds.common.privacy.trust import Trust


def _pair(q: float, z: float, m: int = 1, trust: Trust = "distributed") -> DominatingPair:
    return DominatingPair.of(
        SampledGaussianRelease(sampling_probability=q, noise_multiplier=z, trust=trust, sites_per_patient=m)
    )


def _divergence(loss: DiscreteLoss, interval: float, eps: float) -> float:
    losses = interval * (loss.first + np.arange(len(loss.pmf)))
    return float(loss.pmf @ np.maximum(-np.expm1(eps - losses), 0.0)) + loss.infinite


@given(st.floats(0.001, 1.0), st.floats(0.5, 8), st.integers(1, 6), st.floats(-3, 6))
@settings(deadline=None, max_examples=100)
def test_each_direction_dominates_the_divergences_of_the_densities_and_exceeds_them_by_a_chord_s_height(
    q: float, z: float, m: int, eps: float
) -> None:
    x, step = np.linspace(-12 * z, m + 12 * z, 200_001, retstep=True)
    without = norm.pdf(x, scale=z) * step
    present = sum(w * norm.pdf(x, loc=j, scale=z) * step for j, w in enumerate(binom.pmf(range(m + 1), m, q)))
    removed, added = _pair(q, z, m).discretised(1e-2, 9.0)
    for loss, observed, other in ((removed, present, without), (added, without, present)):
        truth = float(np.maximum(observed - math.exp(eps) * other, 0).sum())
        assert truth * (1 - 1e-6) - 1e-12 <= _divergence(loss, 1e-2, eps) <= truth + 1e-2 / 4 + 1e-6


@pytest.mark.parametrize("q, z, m", [(1.0, 0.1, 100), (0.9999, 0.1, 100), (1e-9, 10_000.0, 100), (1e-30, 1.0, 2)])
@pytest.mark.parametrize("interval, deviations", [(1e4, 9.0), (10.0, 9.0), (10.0, 1.0)])
def test_all_probability_is_accounted_for_at_the_ends_of_the_range(
    q: float, z: float, m: int, interval: float, deviations: float
) -> None:
    for loss in _pair(q, z, m).discretised(interval, deviations):
        assert loss.pmf.min() >= 0
        assert loss.pmf.sum() + loss.infinite == pytest.approx(1, abs=1e-12)


def test_a_tail_that_is_cut_counts_as_an_infinite_loss() -> None:
    interval = 1e-3
    for loss in _pair(1.0, 1.0).discretised(interval, 2.0):
        assert loss.infinite == pytest.approx(norm.sf(2.0), rel=1e-2)
        assert loss.pmf.sum() + loss.infinite == pytest.approx(1, abs=1e-12)


def test_the_loss_and_its_inverse_are_inverse_far_into_both_tails() -> None:
    pair = _pair(0.3, 2.0, 5)
    x = np.linspace(-15, 25, 101)
    assert pair._inverse_loss(pair.loss(x)) == pytest.approx(x, abs=1e-6)
    assert pair._inverse_loss(np.array([math.log(pair.none) - 1e-6]))[0] == -math.inf


def test_counts_too_unlikely_to_matter_are_left_out_and_counted_as_an_infinite_loss() -> None:
    pair = _pair(0.01, 1.0, 100)
    assert len(pair.counts) < 30
    assert math.fsum((pair.none, *pair.weights, pair.beyond)) == pytest.approx(1, abs=1e-12)
    assert 0 < pair.beyond < 1e-24
    removed, _ = pair.discretised(1e-2, 20.0)
    assert removed.infinite >= pair.beyond


def test_under_local_trust_each_release_has_one_contribution() -> None:
    assert _pair(0.1, 2.0, 5, "local") == _pair(0.1, 2.0)
    assert _pair(1.0, 2.0, 5) == _pair(1.0, 0.4)
