"""Rates and averages by round: known curves, and averages that are what their weights say."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.common.study.rates import average_weight, rate_factor

DECAYS = ("none", "linear", "cosine", "inverse-sqrt")


def factors(decay, rounds, warmup_rounds=0):
    every = range(1, rounds + 1)
    return [rate_factor(decay, round_, rounds=rounds, warmup_rounds=warmup_rounds) for round_ in every]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.8535533905932737, 1 / 2, 0.14644660940672624]),
        ("inverse-sqrt", [1 / 3, 2 / 3, 1, 0.7071067811865475, 0.5773502691896258, 1 / 2]),
    ],
)
def test_rates_rise_and_decay_by_known_curves(decay, expected):
    assert factors(decay, 6, warmup_rounds=2) == expected


@settings(max_examples=30, deadline=None)
@given(rounds=st.integers(1, 100_000), data=st.data())
def test_the_cosine_is_the_right_one_to_the_last_bit(rounds, data):
    done = data.draw(st.integers(0, rounds - 1))
    with mpmath.workprec(200):
        expected = float((1 + mpmath.cospi(mpmath.mpf(done) / rounds)) / 2)
    # Where almost nothing is left of it, the digits of π that are kept say less.
    tolerance = 0 if expected > 1e-6 else 1e-30
    assert abs(rate_factor("cosine", done + 1, rounds=rounds) - expected) <= tolerance


@pytest.mark.parametrize("decay", DECAYS)
@settings(max_examples=30, deadline=None)
@given(rounds=st.integers(1, 40), data=st.data())
def test_a_rate_is_reached_in_one_round_and_then_falls_without_becoming_nothing(decay, rounds, data):
    warmup_rounds = data.draw(st.integers(0, rounds - 1))
    found = factors(decay, rounds, warmup_rounds)
    rising, falling = found[: warmup_rounds + 1], found[warmup_rounds:]
    assert rising == sorted(set(rising)) and rising[-1] == falling[0] == 1
    assert falling == sorted(falling, reverse=True) and min(found) > 0


def averaged(values, averaging, rounds, averaged_rounds):
    average = 0.0
    for round_, value in enumerate(values, start=1):
        weight = average_weight(averaging, round_, rounds=rounds, averaged_rounds=averaged_rounds)
        average += weight * (value - average)
    return average


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-1, 1), min_size=2, max_size=12), data=st.data())
def test_a_mean_is_of_the_last_rounds_and_of_the_last_alone_where_training_ends_before_them(values, data):
    rounds = data.draw(st.integers(len(values), 20))
    count = data.draw(st.integers(2, rounds))
    first = min(rounds - count, len(values) - 1)
    np.testing.assert_allclose(averaged(values, "mean", rounds, count), np.mean(values[first:]), atol=1e-12)


def test_an_ema_weighs_rounds_alike_until_it_decays():
    assert [average_weight("ema", round_, rounds=9, averaged_rounds=4) for round_ in range(1, 5)] == [
        1,
        1 / 2,
        0.4,
        0.4,
    ]
    values = [5.0, -3.0, 2.0, 7.0]
    expected = 0.6 * (0.6 * 1.0 + 0.4 * 2.0) + 0.4 * 7.0
    assert averaged(values, "ema", 9, 4) == pytest.approx(expected)


def test_without_an_average_the_last_round_is_left():
    assert averaged([1.0, 2.0, 4.0], "none", 3, 1) == 4.0
