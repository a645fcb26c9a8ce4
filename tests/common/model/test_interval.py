"""Intervals over patients: as Student's where all have as many tokens, and no narrower than what is drawn."""

import secrets

import numpy as np
import pytest
from scipy import stats

from grandrounds.common.model.perplexity import Interval, by_patient


def test_patients_of_as_many_tokens_get_the_paired_t_interval() -> None:
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05])
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    found = Interval.per_token(differences * 40, np.full(5, 40.0))
    assert (found.value, found.low, found.high) == pytest.approx((differences.mean(), *expected))


def coverage(*, per_patient: bool, entropy: int) -> float:
    """How often an interval over records of patients, who differ, has the truth, which is 0."""
    rng, hits = np.random.default_rng(entropy), 0
    for _ in range(1000):
        tokens = rng.integers(20, 60, size=(12, 8)).astype(float)
        losses = (rng.normal(0, 0.2, size=(12, 1)) + rng.normal(0, 0.05, size=(12, 8))) * tokens
        patients = [str(patient) for patient in np.repeat(np.arange(12), 8)]
        sums = (losses.ravel(), tokens.ravel())
        if per_patient:
            sums = (by_patient(sums[0], patients), by_patient(sums[1], patients))
        found = Interval.per_token(*sums)
        hits += found.low <= 0 <= found.high
    return hits / 1000


def test_an_interval_over_patients_has_the_truth_as_often_as_it_says_and_one_over_records_has_not() -> None:
    # False-alarm probability below 1e-6: five standard deviations of a thousand draws are 0.035, and the
    # linearisation costs a little.
    entropy = secrets.randbits(64)
    assert coverage(per_patient=True, entropy=entropy) > 0.90, entropy
    assert coverage(per_patient=False, entropy=entropy) < 0.80, entropy


def test_a_difference_of_two_estimates_is_as_wide_as_both_together_and_of_an_exact_one_as_the_other() -> None:
    one, other = Interval(value=1.0, low=0.7, high=1.4), Interval(value=0.5, low=0.1, high=0.8)
    found = one.minus(other)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - (0.09 + 0.09) ** 0.5, 0.5 + 0.32**0.5))
    exact = one.minus(Interval.exactly(0.5))
    assert (exact.value, exact.low, exact.high) == pytest.approx((0.5, 0.2, 0.9))


def test_one_patient_has_no_interval() -> None:
    found = Interval.per_token(np.array([3.0]), np.array([2.0]))
    assert (found.value, found.low, found.high) == (1.5, -np.inf, np.inf)
