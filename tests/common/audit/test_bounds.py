"""Lower bounds on epsilon: above the truth no more often than stated, strong enough to matter, and wrong ones seen."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta, binom

from grandrounds.common.audit import bounds
from grandrounds.common.audit.bounds import f_dp_bound, line_up_bound, line_up_chance, one_run_bound
from grandrounds.common.audit.line_up import counts_in_line_up
from grandrounds.common.privacy.composition import composed_epsilon
from grandrounds.common.privacy.events import MIN_NOISE_MULTIPLIER, SampledGaussianRelease, Schedule

DELTA = 5e-4
EVENT = SampledGaussianRelease(sampling_probability=0.5, noise_multiplier=1.2254, trust="distributed")
SCHEDULE = Schedule(event=EVENT, count=5)  # the default study's
EPSILON = composed_epsilon([SCHEDULE], delta=DELTA)
REPETITIONS = 200
MOST = 26  # of 200, where one in twenty may be: more happen by chance less than once in a million


def twin(rng, *, canaries: int, foils: int, noise: float = 1.0, schedule: Schedule = SCHEDULE):
    """Scores by the likelihood ratio under the claimed noise, of which the twin adds ``noise`` times; bits; foils."""
    q, count = EVENT.sampling_probability, schedule.count
    z = np.array([schedule.event_of(release).noise_multiplier for release in range(1, count + 1)])
    bits = rng.random(canaries) < 0.5
    inside = np.append(bits, np.zeros(foils, dtype=bool))
    x = inside[:, None] & (rng.random((canaries + foils, count)) < q)
    x = x + noise * z * rng.standard_normal((canaries + foils, count))
    scores = np.log1p(q * np.expm1((x - 0.5) / z**2)).sum(axis=1)
    return scores[:canaries], bits, scores[canaries:]


def bound(scores, bits, foils) -> float:
    return line_up_bound(scores, bits, foils, schedule=SCHEDULE, delta=DELTA, confidence=0.95)


def refuses_the_truth(scores, bits, foils) -> bool:
    """Whether the bound is above the epsilon of what was run."""
    return line_up_chance(scores, bits, foils, schedule=SCHEDULE) <= 0.05


def above_the_truth(is_above=refuses_the_truth) -> int:
    """In how many of 200 small twins the bound is above their epsilon."""
    rng = np.random.default_rng(11)
    return sum(is_above(*twin(rng, canaries=60, foils=150)) for _ in range(REPETITIONS))


def test_a_bound_is_above_the_truth_no_more_often_than_stated():
    assert binom.sf(MOST - 1, REPETITIONS, 0.05) < 1e-5
    assert above_the_truth() < MOST


def test_where_noise_changes_each_release_counts_with_its_own_and_by_one_noise_the_truth_is_refused_too_often():
    rng = np.random.default_rng(13)
    staged = replace(SCHEDULE, stages=((3, 0.5),))
    twins = [twin(rng, canaries=60, foils=150, schedule=staged) for _ in range(REPETITIONS)]
    assert sum(line_up_chance(*each, schedule=staged) <= 0.05 for each in twins) < MOST
    assert sum(refuses_the_truth(*each) for each in twins) >= MOST


def test_an_honest_twin_s_bound_comes_near_its_epsilon_where_noise_changes():
    staged = replace(SCHEDULE, stages=((5, 4.0),))
    found = line_up_bound(
        *twin(np.random.default_rng(1), canaries=5_000, foils=27_500, schedule=staged),
        schedule=staged,
        delta=DELTA,
        confidence=0.95,
    )
    epsilon = composed_epsilon([staged], delta=DELTA)
    assert 0.87 * epsilon <= found <= epsilon < EPSILON


def test_who_reveals_everybody_is_bounded_whatever_stages_there_are():
    bits = np.arange(400) % 2 == 0
    staged = replace(SCHEDULE, stages=((2, 4.0), (3, 0.25)))  # of which none takes noise out of its range
    found = line_up_bound(list(bits), list(bits), [0.0] * 1_600, schedule=staged, delta=DELTA, confidence=0.95)
    assert found > 100


def test_no_stage_takes_the_search_out_of_the_range_that_noise_has(monkeypatch):
    tried: list[Schedule] = []

    def chance(*scores, schedule: Schedule) -> float:
        tried.append(schedule)
        return 1.0

    monkeypatch.setattr(bounds, "line_up_chance", chance)
    for thousandths in range(250, 4001):
        staged = replace(SCHEDULE, stages=((3, thousandths / 1000),))
        assert line_up_bound([1.0], [True], [0.0], schedule=staged, delta=DELTA, confidence=0.95) == 0
    assert len(tried) == 3751


def test_a_bound_is_above_the_truth_where_the_truth_is_refused_and_nowhere_else():
    rng = np.random.default_rng(14)
    twins = [twin(rng, canaries=60, foils=150, noise=noise) for noise in (3.0, 0.7, 0.4)]
    assert [bound(*each) > EPSILON for each in twins] == [refuses_the_truth(*each) for each in twins]
    assert {refuses_the_truth(*each) for each in twins} == {True, False}


def test_the_largest_of_several_bounds_is_above_the_truth_too_often():
    rng = np.random.default_rng(12)

    def any_refuses(*first) -> bool:
        return any(refuses_the_truth(*each) for each in (first, *(twin(rng, canaries=60, foils=150) for _ in range(4))))

    assert above_the_truth(any_refuses) >= MOST


def test_line_ups_put_together_after_a_look_at_the_scores_are_above_the_truth_too_often():
    assert above_the_truth(lambda scores, bits, foils: refuses_the_truth(scores, bits, np.sort(foils))) >= MOST


def test_a_tail_that_takes_those_of_one_line_up_for_independent_is_above_the_truth_too_often(monkeypatch):
    def as_if_independent(schedule, *, others: int, line_ups: int, count: int) -> float:
        share = np.dot(counts_in_line_up(schedule, others), np.arange(others + 1)) / others
        return float(binom.sf(count - 1, line_ups * others, share))

    monkeypatch.setattr(bounds, "tail", as_if_independent)
    assert above_the_truth() >= MOST


@pytest.mark.parametrize(("canaries", "foils", "least"), [(1_000, 16_000, 3.0), (5_000, 27_500, 3.5)])
def test_an_honest_twin_s_bound_comes_near_its_epsilon(canaries, foils, least):
    assert least <= bound(*twin(np.random.default_rng(1), canaries=canaries, foils=foils)) <= EPSILON


def test_without_noise_the_bound_is_far_above_the_claim_and_with_half_of_it_above():
    rng = np.random.default_rng(2)
    assert bound(*twin(rng, canaries=400, foils=1_600, noise=1e-3)) > 10
    assert bound(*twin(rng, canaries=400, foils=1_600, noise=0.5)) > EPSILON


def test_scores_that_tell_nothing_bound_nothing():
    rng = np.random.default_rng(3)
    scores, bits, foils = twin(rng, canaries=400, foils=1_600)
    assert bound(rng.permutation(scores), bits, foils) < 1
    assert bound(np.zeros(400), bits, np.zeros(1_600)) == 0
    assert bound(scores, np.zeros(400, dtype=bool), foils) == bound(scores, np.ones(400, dtype=bool), []) == 0


def test_who_reveals_everybody_is_bounded_by_nearly_what_the_least_noise_that_there_is_costs():
    bits = np.arange(400) % 2 == 0
    event = replace(EVENT, noise_multiplier=MIN_NOISE_MULTIPLIER)
    most = composed_epsilon([replace(SCHEDULE, event=event)], delta=DELTA)
    assert most * (1 - 2e-3) <= bound(bits, bits, np.zeros(1_600)) <= most


def guesses(*, canaries: int, guessed: int, correct: int):
    """Scores and bits of which so many of the guesses are right, half of them on either side."""
    inside, outside = correct - correct // 2, correct // 2
    half, rest = guessed // 2, canaries - guessed
    bits = [False] * outside + [True] * (half - outside) + [True] * rest + [False] * (half - inside) + [True] * inside
    return np.arange(canaries), np.array(bits)


def test_without_delta_one_run_s_bound_is_that_of_a_binomial_s_chance():
    chance = beta.ppf(0.05, 180, 21)
    found = one_run_bound(*guesses(canaries=1_000, guessed=200, correct=180), delta=0.0, confidence=0.95)
    assert found == pytest.approx(np.log(chance / (1 - chance)), abs=2e-4)


def test_who_reveals_everybody_with_a_chance_of_delta_is_not_refused():
    everybody = guesses(canaries=200, guessed=40, correct=40)
    assert one_run_bound(*everybody, delta=0.2, confidence=0.95) == 0
    assert one_run_bound(*everybody, delta=0.0, confidence=0.95) > 2


@pytest.mark.parametrize(
    ("canaries", "guessed", "correct", "delta", "one_run", "curve"),
    [
        (1_000, 200, 180, 5e-4, 1.5997, 2.1737),
        (1_000, 200, 199, 5e-4, 2.5345, 4.9411),
        (5_000, 1_000, 880, 5e-4, 1.4185, 2.0366),
        (400, 80, 60, 1e-3, 0.4444, 0.6732),
        (200, 40, 40, 1e-5, 2.5482, 4.5342),
    ],
)
def test_bounds_of_guesses_are_those_of_jax_privacy(canaries, guessed, correct, delta, one_run, curve):
    """Known answers: jax_privacy 2.0.0, ``auditing``, at a significance of 0.05."""
    seen = guesses(canaries=canaries, guessed=guessed, correct=correct)
    assert one_run_bound(*seen, delta=delta, confidence=0.95) == pytest.approx(one_run, abs=2e-4)
    assert f_dp_bound(*seen, delta=delta, confidence=0.95) == pytest.approx(curve, abs=2e-4)
