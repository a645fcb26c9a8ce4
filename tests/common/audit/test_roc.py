"""Figures of attacks and their intervals: known answers, coverage, and what would be wrong."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import binom, binomtest

from grandrounds.common.audit.roc import Detection, auc, share

SCORES = st.lists(st.integers(-3, 3), min_size=2, max_size=12).map(lambda values: np.array(values, dtype=float))


@pytest.mark.parametrize(("hits", "of"), [(0, 20), (1, 20), (7, 20), (20, 20), (3, 5000)])
def test_a_share_s_interval_is_clopper_and_pearson_s(hits, of):
    expected = binomtest(hits, of).proportion_ci(confidence_level=0.99, method="exact")
    found = share(hits, of, confidence=0.99)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_share_s_interval_covers_the_truth_as_often_as_it_says():
    for true in (0.01, 0.3, 0.5):
        intervals = [share(hits, 40, confidence=0.95) for hits in range(41)]
        covered = sum(binom.pmf(hits, 40, true) for hits, one in enumerate(intervals) if one.low <= true <= one.high)
        assert covered >= 0.95


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_pairs_in_order_with_ties_by_half(members, others):
    pairs = [1.0 if one > other else 0.5 if one == other else 0.0 for one, other in product(members, others)]
    found = auc(members, others, confidence=0.95)
    assert found.value == pytest.approx(sum(pairs) / len(pairs))
    assert 0 <= found.low <= found.value <= found.high <= 1
    turned = auc(others, members, confidence=0.95)
    assert (turned.value, turned.low) == pytest.approx((1 - found.value, 1 - found.high), abs=1e-9)


def test_the_area_s_interval_ends_where_hanley_and_mcneil_s_variance_puts_it():
    members, others = np.arange(10.0) + 4.5, np.arange(10.0)
    found = auc(members, others, confidence=0.95)
    for end in (found.low, found.high):
        q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)  # their own form of it
        variance = (end * (1 - end) + 9 * (q1 - end**2) + 9 * (q2 - end**2)) / 100
        assert abs(found.value - end) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-5)


def test_where_all_members_are_above_all_others_the_interval_still_has_a_width():
    few = auc(np.arange(5.0) + 9, np.arange(5.0), confidence=0.95)
    assert (few.value, few.high) == (1.0, 1.0)
    assert few.low < 0.7


@pytest.mark.parametrize("apart", [0.0, 2.5])
def test_the_area_s_interval_covers_the_truth_about_as_often_as_it_says(apart):
    """Of 500, fewer than 449 where each covers with 95 %: below 10^-6."""
    rng = np.random.default_rng(entropy := 7)
    true = float(ndtr(apart / math.sqrt(2)))
    found = [auc(rng.normal(apart, 1, 30), rng.normal(0, 1, 50), confidence=0.95) for _ in range(500)]
    assert sum(one.low <= true <= one.high for one in found) >= 449, entropy


def test_of_a_hundred_others_one_is_above_the_score_at_one_percent_and_of_fifty_none():
    others = np.arange(100.0)
    members = np.array([97.5, 98.5, 99.5, 200.0])
    at = Detection.at(0.01, members, others, confidence=0.95)
    assert (at.members.value, at.false_alarms.value) == (0.75, 0.01)
    few = Detection.at(0.01, members, others[:50], confidence=0.95)
    assert (few.members.value, few.false_alarms.value) == (1.0, 0.0)
    assert few.false_alarms.high > 0.05


@given(SCORES, SCORES, st.sampled_from([0.01, 0.1, 0.5]))
def test_no_more_of_the_others_are_above_the_score_than_the_rate_allows(members, others, rate):
    found = Detection.at(rate, members, others, confidence=0.95)
    assert found.false_alarms.value <= rate
