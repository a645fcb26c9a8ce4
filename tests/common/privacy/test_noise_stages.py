"""Noise that differs by a release's number: what it costs is what a fixed list of releases costs, and no less.

Truths are closed forms: unsampled Gaussians of the deviations z_i are one of 1 / sqrt(sum of 1 / z_i^2).
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from support.study.closed_form import gaussian_epsilon

from grandrounds.common.errors import PrivacyError
from grandrounds.common.privacy.accountant import calibrate_noise_multiplier, epsilon
from grandrounds.common.privacy.composition import composed_epsilon, least_epsilon
from grandrounds.common.privacy.events import NoiseStage, SampledGaussianRelease, Schedule
from grandrounds.common.privacy.filters import rdp_cost

DELTA = 1e-5


def _schedule(q: float, z: float, count: int, *stages: NoiseStage, m: int = 1) -> Schedule:
    event = SampledGaussianRelease(sampling_probability=q, noise_multiplier=z, trust="distributed", sites_per_patient=m)
    return Schedule(event=event, count=count, stages=stages)


UNSAMPLED = _schedule(1.0, 4.0, 12, (5, 0.5), (9, 2.0))  # four releases each at 4, 2 and 8
TRUTH = gaussian_epsilon(math.sqrt(4 / 4.0**2 + 4 / 2.0**2 + 4 / 8.0**2), DELTA)
PATHS: dict[str, Callable[[Schedule], float]] = {
    "the report's": lambda schedule: epsilon(schedule, delta=DELTA).epsilon,
    "verify's": lambda schedule: composed_epsilon([schedule], delta=DELTA),
}


@pytest.mark.parametrize("path", PATHS)
def test_stages_cost_what_their_gaussians_cost_together_by_both_paths(path: str) -> None:
    assert TRUTH * (1 - 1e-9) <= PATHS[path](UNSAMPLED) <= TRUTH * 1.002


def test_two_stages_cost_what_the_library_says_of_the_two_events() -> None:
    from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    by_hand = PLDAccountant(value_discretization_interval=1e-3)
    for z, count in ((2.0, 3), (1.2, 5)):
        by_hand.compose(PoissonSampledDpEvent(0.2, GaussianDpEvent(z)), count)
    schedule = _schedule(0.2, 2.0, 8, (4, 0.6))
    for found in PATHS.values():
        assert found(schedule) == pytest.approx(by_hand.get_epsilon(DELTA), rel=2e-3)
    by_rdp = epsilon(schedule, delta=DELTA).epsilon_rdp
    assert by_rdp is not None and by_hand.get_epsilon(DELTA) < by_rdp < 1.5 * by_hand.get_epsilon(DELTA)
    assert least_epsilon(schedule, delta=DELTA) <= by_hand.get_epsilon(DELTA)


@pytest.mark.parametrize("m", [1, 2])
def test_the_order_of_stages_changes_nothing_and_a_stage_of_the_same_noise_is_none(m: int) -> None:
    falling, rising = _schedule(0.2, 4.0, 8, (4, 0.5), m=m), _schedule(0.2, 2.0, 8, (6, 2.0), m=m)
    assert PATHS["verify's"](falling) == pytest.approx(PATHS["verify's"](rising), rel=1e-12)
    assert rdp_cost(falling, order=8) == pytest.approx(rdp_cost(rising, order=8), rel=1e-12)
    constant = _schedule(0.2, 4.0, 8, m=m)
    assert PATHS["verify's"](replace(constant, stages=((4, 1.0),))) == pytest.approx(PATHS["verify's"](constant))
    assert replace(constant, stages=((9, 0.5),)).events == constant.events == ((constant.event, 8),), "never reached"


def test_epsilon_falls_with_the_noise_of_any_stage() -> None:
    factors = (0.25, 0.5, 1.0, 2.0, 4.0)
    for others in ((0.5,), (2.0,)):
        for of in (lambda f, o: ((3, f), (6, o)), lambda f, o: ((3, o), (6, f))):
            found = [PATHS["verify's"](_schedule(0.2, 4.0, 8, *of(factor, *others))) for factor in factors]
            assert found == sorted(found, reverse=True) and len(set(found)) == len(found)


def test_a_renyi_cost_is_that_of_each_release() -> None:
    of_gaussians = 6 * (4 / 4.0**2 + 4 / 2.0**2 + 4 / 8.0**2) / 2
    assert of_gaussians <= rdp_cost(UNSAMPLED, order=6) <= of_gaussians * (1 + 1e-6)


WRONG: dict[str, Callable[[Schedule], Schedule]] = {
    "the first stage's noise in all": lambda schedule: replace(schedule, stages=()),
    "the mean noise in all": lambda schedule: replace(
        schedule, stages=(), event=replace(schedule.event, noise_multiplier=(4 * 4.0 + 4 * 2.0 + 4 * 8.0) / 12)
    ),
    "stages that begin one release late": lambda schedule: replace(schedule, stages=((6, 0.5), (9, 2.0))),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("path", PATHS)
def test_a_claim_of_other_noise_than_is_added_is_too_little(path: str, wrong: str) -> None:
    assert PATHS[path](WRONG[wrong](UNSAMPLED)) < 0.99 * TRUTH


def _ways(attempts: int) -> Iterator[list[int]]:
    """The round of each attempt, whatever fails: each is of the round before it, or closes that and is of the next."""
    for closes in itertools.product((0, 1), repeat=attempts - 1):
        yield list(itertools.accumulate(closes, initial=1))


def test_whoever_aborts_what_sees_no_more_than_is_claimed_by_attempts_and_would_by_rounds() -> None:
    schedule = _schedule(1.0, 2.0, 6, (3, 2.0), (5, 4.0))
    claimed = math.sqrt(sum(count / event.noise_multiplier**2 for event, count in schedule.events))

    def seen(numbers: list[int]) -> float:
        return math.sqrt(sum(1 / schedule.event_of(number).noise_multiplier ** 2 for number in numbers))

    by_attempts = {seen([attempt for attempt, _ in enumerate(rounds, start=1)]) for rounds in _ways(6)}
    assert len(by_attempts) == 1 and by_attempts.pop() == pytest.approx(claimed)
    assert max(map(seen, _ways(6))) > 1.4 * claimed, "round 1 for ever, under its little noise"


def test_noise_is_calibrated_for_all_stages() -> None:
    stages = ((3, 4.0), (5, 0.25))
    z = calibrate_noise_multiplier(
        target_epsilon=3.0, delta=DELTA, sampling_probability=0.2, steps=6, trust="distributed", stages=stages
    )
    assert 2.985 < PATHS["the report's"](_schedule(0.2, z, 6, *stages)) <= 3.0


def test_noise_is_calibrated_where_the_least_of_a_stage_ends_the_search() -> None:
    z = calibrate_noise_multiplier(
        target_epsilon=500.0,
        delta=DELTA,
        sampling_probability=1.0,
        steps=2,
        trust="distributed",
        stages=((2, 0.3),),
    )
    assert z == pytest.approx(0.3334) and z * 0.3 >= 0.1


@pytest.mark.parametrize(
    "stages", [((1, 0.5),), ((5, 0.5), (5, 0.6)), ((6, 0.5), (5, 0.6)), ((2, 0.2),), ((2, 5.0),), ((2, math.nan),)]
)
def test_stages_that_are_none_are_refused(stages: tuple[NoiseStage, ...]) -> None:
    with pytest.raises(PrivacyError, match="the stages of noise are"):
        _schedule(0.2, 4.0, 8, *stages)
    with pytest.raises(PrivacyError, match=r"the noise multiplier is 0\.05"):
        _schedule(0.2, 0.2, 8, (3, 0.25))
