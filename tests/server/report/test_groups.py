"""Who pays for the noise: groups of people, paired, with intervals; and what is too small for a word."""

import secrets

import numpy as np
import pytest
from scipy import stats

from grandrounds.server.report.groups import FEWEST_PATIENTS, in_groups, verdict

PATIENTS = [f"p{number}" for number in range(20)]
SEX = {"sex": ["F"] * 10 + ["M"] * 10}


def evaluated(gains: np.ndarray, tokens: float = 50.0) -> np.ndarray:
    """What is lost on one record of each of these gains in nats per token."""
    return np.array([np.full(len(gains), tokens), np.full(len(gains), 3.0) * tokens, (3.0 - gains) * tokens])


def test_a_group_s_gain_is_the_paired_t_interval_of_its_patients_and_compared_with_the_others() -> None:
    gains = np.linspace(0.1, 0.3, 20)
    everyone, women, men = in_groups(evaluated(gains), patients=PATIENTS, groups=SEX)
    assert (everyone.trait, everyone.patients, everyone.beyond_others) == ("everyone", 20, None)
    expected = stats.ttest_1samp(gains[:10], 0).confidence_interval(0.95)
    assert women.gain is not None and women.before == pytest.approx(np.exp(3), rel=1e-2)
    assert (women.gain.low, women.gain.high) == pytest.approx(tuple(expected), abs=1e-3)
    assert women.gains_less and not men.gains_less and not women.is_worse
    assert women.beyond_others is not None and men.beyond_others is not None
    assert (
        women.beyond_others.value
        == -men.beyond_others.value
        == pytest.approx(gains[:10].mean() - gains[10:].mean(), abs=1e-3)
    )
    assert verdict([everyone, women, men]) == "LESS gained than by others for sex: F."


def test_more_groups_need_more_to_be_shown_so_that_all_hold_at_once() -> None:
    gains = np.concatenate([np.full(10, 0.2), np.full(10, 0.25)]) + np.tile([-0.03, 0.03], 10)
    sites = {f"trait {number}": SEX["sex"] for number in range(20)}
    alone, among = (in_groups(evaluated(gains), patients=PATIENTS, groups=groups)[1] for groups in (SEX, sites))
    assert alone.beyond_others is not None and among.beyond_others is not None
    assert alone.gain == among.gain and alone.beyond_others.high < among.beyond_others.high
    assert alone.gains_less and not among.gains_less


def test_of_too_few_patients_nothing_is_said_however_many_records_they_have() -> None:
    gains = np.full(20, 0.2)
    few = PATIENTS[: FEWEST_PATIENTS - 1] * 5
    groups = {"race": ["rare"] * 16 + ["common"] * 4}
    _, common, rare = in_groups(evaluated(gains), patients=few[:16] + PATIENTS[10:14], groups=groups)
    assert (common.patients, rare.patients) == (4, 4) and common.is_too_small and rare.is_too_small
    assert (rare.before, rare.after, rare.gain, rare.beyond_others) == (None,) * 4
    assert "2 are too small to say" in verdict([common, rare])


def test_a_group_whose_perplexity_is_no_longer_finite_is_worse() -> None:
    lost = evaluated(np.full(20, 0.2))
    lost[2, :10] = np.nan
    _, women, men = in_groups(lost, patients=PATIENTS, groups=SEX)
    assert (women.after, women.gain) == (None, None) and women.is_worse and not men.is_worse


def test_groups_that_gain_alike_are_seldom_said_to_gain_less() -> None:
    # False-alarm probability: of 200 tables each has a wrong word with probability at most 0.05 (Bonferroni, both
    # directions); 25 or more of 200 have probability below 1e-4 at 0.05, and only one direction of two is a word: 1e-9.
    entropy = secrets.randbits(64)
    rng = np.random.default_rng(entropy)
    wrong = 0
    for _ in range(200):
        found = in_groups(evaluated(rng.normal(0.2, 0.1, 20)), patients=PATIENTS, groups=SEX)
        wrong += any(group.gains_less for group in found)
    assert wrong < 25, entropy
