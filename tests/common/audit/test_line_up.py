"""How many of those outside a study score below somebody in it: known answers, and against the mechanism itself."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from grandrounds.common.audit.bounds import _gaussian_shift
from grandrounds.common.audit.line_up import _composed, counts_in_line_up, tail
from grandrounds.common.privacy.composition import composed_epsilon
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.privacy.trust import Trust


def schedule(*, z: float, q: float = 1.0, count: int = 1, trust: Trust = "distributed", sites: int = 1) -> Schedule:
    event = SampledGaussianRelease(sampling_probability=q, noise_multiplier=z, trust=trust, sites_per_patient=sites)
    return Schedule(event=event, count=count)


def mean_share(counts: tuple[float, ...]) -> float:
    return float(np.dot(counts, np.arange(len(counts)))) / (len(counts) - 1)


@pytest.mark.parametrize("others", [1, 9, 32])
@pytest.mark.parametrize(("z", "count"), [(1.2, 1), (1.2, 5), (40.0, 1000), (300.0, 3)])
def test_of_gaussians_the_mean_is_the_area_under_a_known_curve(z, count, others):
    area = ndtr(math.sqrt(count) / z / math.sqrt(2))
    assert area <= mean_share(counts_in_line_up(schedule(z=z, count=count), others)) <= area + 3e-4


def test_of_a_gaussian_every_count_is_the_known_one():
    x, weights = np.polynomial.hermite_e.hermegauss(120)
    below = ndtr(x + 1 / 1.2)
    known = [math.comb(4, k) * weights @ (below**k * (1 - below) ** (4 - k)) / weights.sum() for k in range(5)]
    assert counts_in_line_up(schedule(z=1.2), 4) == pytest.approx(known, abs=3e-4)


def test_who_is_drawn_with_half_a_chance_scores_as_one_outside_otherwise():
    drawn = ndtr(1 / 0.9 / math.sqrt(2))
    found = mean_share(counts_in_line_up(schedule(z=0.9, q=0.5), 9))
    assert 0 <= found - (0.5 * drawn + 0.25) <= 5e-4


def test_a_patient_at_two_sites_meets_two_releases_or_one_twice_over():
    twice = counts_in_line_up(schedule(z=1.5, count=6), 9)
    assert counts_in_line_up(schedule(z=1.5, count=3, trust="local", sites=2), 9) == pytest.approx(twice, abs=1e-9)
    nearer = counts_in_line_up(schedule(z=0.75, count=3), 9)
    assert counts_in_line_up(schedule(z=1.5, count=3, sites=2), 9) == pytest.approx(nearer, abs=1e-9)


@pytest.mark.parametrize("stages", [((3, 0.5),), ((2, 4.0), (5, 0.25))])
def test_noise_that_changes_adds_up_as_the_precisions_of_its_releases_do(stages):
    """Known: of Gaussians of several widths, all told together, the shift is the root of the sum of 1 / z²."""
    of = replace(schedule(z=2.0, count=6), stages=stages)
    shift = math.sqrt(sum(1 / of.event_of(release).noise_multiplier ** 2 for release in range(1, 7)))
    area = ndtr(shift / math.sqrt(2))
    assert area <= mean_share(counts_in_line_up(of, 9)) <= area + 3e-4


def test_stages_of_one_noise_are_none():
    of = schedule(z=1.2, q=0.5, count=5)
    alike = counts_in_line_up(replace(of, stages=((2, 1.0), (4, 1.0))), 9)
    assert alike == pytest.approx(counts_in_line_up(of, 9), abs=1e-12)


def test_no_score_of_the_mechanism_is_better_in_any_line_up():
    """The exact likelihood ratio reaches the curve and exceeds it by chance alone; false alarms below 1e-6."""
    rng, people, z, q, count = np.random.default_rng(5), 20_000, 1.2254, 0.5, 5

    def scores(inside: bool, shape: tuple[int, ...]) -> np.ndarray:
        x = z * rng.standard_normal((*shape, count)) + inside * (rng.random((*shape, count)) < q)
        return np.log1p(q * np.expm1((x - 0.5) / z**2)).sum(axis=-1)

    below = (scores(False, (people, 4)) < scores(True, (people, 1))).sum(axis=1)
    at_least = np.array([(below >= k).mean() for k in range(5)])
    curve = np.cumsum(counts_in_line_up(schedule(z=z, q=q, count=count), 4)[::-1])[::-1]
    assert np.abs(at_least - curve).max() < 5 / math.sqrt(people), rng.bit_generator.state


def test_the_tail_of_many_line_ups_is_the_binomial_s_where_one_other_stands_in_each():
    from scipy.stats import binom

    right = counts_in_line_up(schedule(z=1.2), 1)[1]
    found = [tail(schedule(z=1.2), others=1, line_ups=50, count=count) for count in range(51)]
    assert found == pytest.approx(binom.sf(np.arange(51) - 1, 50, right), abs=2e-9)


def test_less_noise_never_makes_a_line_up_harder():
    tails = [tail(schedule(z=z, q=0.5, count=5), others=9, line_ups=40, count=260) for z in (0.2, 0.5, 1, 1.1, 3, 99)]
    assert tails == sorted(tails, reverse=True)


@pytest.mark.parametrize(
    ("z", "q", "count", "delta"), [(1.2254, 0.5, 5, 5e-4), (0.6, 0.01, 1000, 1e-5), (1.5, 0.9, 10, 1e-5)]
)
def test_the_gaussian_of_a_schedule_s_epsilon_allows_more_at_every_false_positive_rate(z, q, count, delta):
    """So that a bound by the Gaussian's curve holds for sampled releases, too, and where their noise changes."""
    of = schedule(z=z, q=q, count=count)
    _check_curve(of, delta)
    _check_curve(replace(of, stages=((count // 2 + 1, 0.5),)), delta)


def _check_curve(of: Schedule, delta: float) -> None:
    shift = _gaussian_shift(composed_epsilon([of], delta=delta), delta)
    present, outside = (np.cumsum(masses[::-1]) for masses in _composed(of))
    rates = np.geomspace(1e-3, 0.99, 40)
    assert (np.interp(rates, outside, present) <= ndtr(ndtri(rates) + shift) + 1e-6).all()
