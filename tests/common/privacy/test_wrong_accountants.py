"""Each check passes for what we claim with, and each wrong accountant fails the check that is there to catch it.

A check takes an accountant, a claim or a filter and says whether it holds. All truths are exact: closed forms, values
of other libraries, or an integral over everything that an adversary can see.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.special import ndtr
from support.places import VECTORS
from support.study.closed_form import gaussian_epsilon

from grandrounds.common.privacy import accountant
from grandrounds.common.privacy.composition import composed_epsilon, recomputed_epsilon
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.privacy.filters import rdp_budget, rdp_cost
from grandrounds.common.privacy.trust import Trust
from grandrounds.server.rounds.accountant import CentralAccountant

Accountant = Callable[[Schedule, float], float]  # the epsilon at a delta

DELTA = 0.01  # large, so that what exceeds it can be computed exactly


def _schedule(q: float, z: float, count: int = 1, trust: Trust = "local", m: int = 1) -> Schedule:
    event = SampledGaussianRelease(sampling_probability=q, noise_multiplier=z, trust=trust, sites_per_patient=m)
    return Schedule(event=event, count=count)


def _changed(schedule: Schedule, **changes: Any) -> Schedule:
    return replace(schedule, event=replace(schedule.event, **changes))


def _claimed(schedule: Schedule, delta: float) -> float:
    return accountant.epsilon(schedule, delta=delta).epsilon


@cache
def _recomputed(schedule: Schedule, delta: float) -> float:
    return recomputed_epsilon(schedule, delta=delta)


# The epsilon of one schedule.

SETTINGS: list[tuple[Trust, int]] = [("local", 1), ("local", 3), ("distributed", 3)]
UNSAMPLED = [
    (_schedule(1.0, z, count, trust, m), delta, (m if trust == "distributed" else math.sqrt(m)) * math.sqrt(count) / z)
    for z, count, delta in ((0.8, 1, 1e-5), (5.0, 40, 1e-3))
    for trust, m in SETTINGS
]
CASES = json.loads((VECTORS / "accountant.json").read_text())["cases"]


def is_never_below_the_closed_form(epsilon: Accountant) -> bool:
    return all(epsilon(schedule, delta) >= gaussian_epsilon(mu, delta) for schedule, delta, mu in UNSAMPLED)


def is_tight(epsilon: Accountant) -> bool:
    return all(epsilon(schedule, delta) <= 1.001 * gaussian_epsilon(mu, delta) for schedule, delta, mu in UNSAMPLED)


def agrees_with_other_libraries(epsilon: Accountant) -> bool:
    return all(
        epsilon(_schedule(q, z, steps, trust, m), delta) == pytest.approx(expected, rel=1e-3)
        for q, z, steps, delta, trust, m, expected in CASES
    )


ACCOUNTANT_CHECKS = (is_never_below_the_closed_form, is_tight, agrees_with_other_libraries)

WRONG_ACCOUNTANTS: dict[str, tuple[Callable[[Accountant], bool], Accountant]] = {
    "delta taken for epsilon": (is_never_below_the_closed_form, lambda s, delta: delta),
    "sampling forgotten": (agrees_with_other_libraries, lambda s, delta: _recomputed(s.without_amplification(), delta)),
    "the deviation taken for the variance": (
        is_never_below_the_closed_form,
        lambda s, delta: _recomputed(_changed(s, noise_multiplier=s.event.noise_multiplier**2), delta),
    ),
    "the variance taken for the deviation": (
        agrees_with_other_libraries,
        lambda s, delta: _recomputed(_changed(s, noise_multiplier=math.sqrt(s.event.noise_multiplier)), delta),
    ),
    "epsilons added up across rounds": (
        is_tight,
        lambda s, delta: s.count * _recomputed(replace(s, count=1), delta / s.count),
    ),
    "overlap ignored": (
        is_never_below_the_closed_form,
        lambda s, delta: _recomputed(_changed(s, sites_per_patient=1), delta),
    ),
    "overlap composed where it mixes": (
        is_never_below_the_closed_form,
        lambda s, delta: _recomputed(_changed(s, trust="local"), delta),
    ),
    "overlap mixed where it composes": (
        is_tight,
        lambda s, delta: _recomputed(_changed(s, trust="distributed"), delta),
    ),
    "overlap as a larger sampling probability": (
        agrees_with_other_libraries,
        lambda s, delta: _recomputed(
            _changed(
                s,
                sampling_probability=1 - (1 - s.event.sampling_probability) ** s.event.sites_per_patient,
                sites_per_patient=1,
            ),
            delta,
        ),
    ),
    "one release missing in ten": (
        is_never_below_the_closed_form,
        lambda s, delta: _recomputed(replace(s, count=max(1, s.count * 9 // 10)), delta),
    ),
    "twice the delta": (is_never_below_the_closed_form, lambda s, delta: _recomputed(s, 2 * delta)),
}


@pytest.mark.parametrize("check", ACCOUNTANT_CHECKS)
@pytest.mark.parametrize("epsilon", [_claimed, _recomputed])
def test_the_accountant_passes_every_check(check: Callable[[Accountant], bool], epsilon: Accountant) -> None:
    assert check(epsilon)


@pytest.mark.parametrize("name", WRONG_ACCOUNTANTS)
def test_a_wrong_accountant_fails_its_check(name: str) -> None:
    check, wrong = WRONG_ACCOUNTANTS[name]
    assert not check(wrong)


# What a study claims, of which the number of attempts is not known beforehand.


@dataclass(frozen=True)
class Run:
    """A study after ``begun`` attempts of one release each, under Gaussian noise of deviation ``noise_multiplier``."""

    noise_multiplier: float
    rounds: int
    max_attempts: int
    begun: int

    def schedule(self, count: int) -> Schedule:
        return _schedule(1.0, self.noise_multiplier, count)


Claim = Callable[[Run], float]


def _claim(run: Run) -> float:
    study = CentralAccountant(
        schedule=run.schedule(run.max_attempts), max_attempts=run.max_attempts, delta=DELTA, committed=run.begun
    )
    assert study.epsilon_of_schedule is not None
    return study.epsilon_of_schedule.epsilon


def covers_the_attempts_that_failed(claim: Claim) -> bool:
    return claim(Run(10.0, rounds=6, max_attempts=12, begun=12)) >= gaussian_epsilon(math.sqrt(12) / 10, DELTA)


def covers_stopping_when_it_suits(claim: Claim) -> bool:
    """Whether an adversary who stops a study as soon as its loss exceeds the claim then made gains at most delta.

    Under any fixed epsilon, delta bounds the sum of (p - exp(epsilon) q)+ over all outcomes, p and q their
    probabilities with a person and without. Here each outcome has the claim made when the study stopped there. The sum
    of n releases has density p_n among the runs not yet stopped, and p / q = exp((x - n / 2) / z^2).
    """
    z, attempts = 4.0, 16
    step = z / 40
    noise = np.arange(-10 * z, 10 * z, step)
    kernel = step * np.exp(-((noise / z) ** 2) / 2) / (z * math.sqrt(2 * math.pi))
    x, running = np.zeros(1), np.ones(1) / step
    gained = 0.0
    for begun in range(1, attempts + 1):
        running = np.maximum(fftconvolve(running, kernel), 0.0)
        x = x[0] + noise[0] + 1 + step * np.arange(len(running))
        loss = (x - begun / 2) / z**2
        epsilon = claim(Run(z, rounds=attempts, max_attempts=attempts, begun=begun))
        stopped = loss > epsilon
        gained += step * float(running[stopped] @ -np.expm1(epsilon - loss[stopped]))
        running[stopped] = 0.0
    return gained <= DELTA * 1.001


CLAIM_CHECKS = (covers_the_attempts_that_failed, covers_stopping_when_it_suits)

WRONG_CLAIMS: dict[str, tuple[Callable[[Claim], bool], Claim]] = {
    "attempts counted as rounds": (
        covers_the_attempts_that_failed,
        lambda run: _recomputed(run.schedule(run.rounds), DELTA),
    ),
    "what was spent when it stopped": (
        covers_stopping_when_it_suits,
        lambda run: _recomputed(run.schedule(run.begun), DELTA),
    ),
}


@pytest.mark.parametrize("check", CLAIM_CHECKS)
def test_the_claim_passes_every_check(check: Callable[[Claim], bool]) -> None:
    assert check(_claim)


@pytest.mark.parametrize("name", WRONG_CLAIMS)
def test_a_wrong_claim_fails_its_check(name: str) -> None:
    check, wrong = WRONG_CLAIMS[name]
    assert not check(wrong)


# What a site allows of a second study after a first, chosen by whoever has seen the first one's result.

Filter = Callable[[Schedule, Schedule], bool]  # whether both together keep the budget
BUDGET = 2.0
ORDER = 6  # about 1 + 2 log(1 / DELTA) / BUDGET
FIRST_NOISE = 2.0
CHOICES = (1.0, 0.2, 0.05, 0.9 * DELTA, 0.5 * DELTA)  # from "everybody, a little" to "a few, entirely"


def _rdp_filter(first: Schedule, second: Schedule) -> bool:
    budget = rdp_budget(epsilon=BUDGET, delta=DELTA, order=ORDER)
    return rdp_cost(first, order=ORDER) + rdp_cost(second, order=ORDER) <= budget


def _sum_filter(first: Schedule, second: Schedule) -> bool:
    return _recomputed(first, DELTA / 2) + _recomputed(second, DELTA / 2) <= BUDGET


def _pld_of_what_was_run(first: Schedule, second: Schedule) -> bool:
    return composed_epsilon([first, second], delta=DELTA) <= BUDGET


def keeps_its_budget(allows: Filter, choices: Sequence[float]) -> bool:
    """Whether two studies are (BUDGET, DELTA) if the second is, for each result x of the first, the worst allowed one.

    ``choices`` are its sampling probabilities; with each it has the least noise that is allowed. The first is N(1, z^2)
    with a person and N(0, z^2) without, and leaves BUDGET minus its loss for the second.
    """
    first = _schedule(1.0, FIRST_NOISE)
    seconds = [_least_noise_allowed(lambda second: allows(first, second), q) for q in choices]
    x, step = np.linspace(-12 * FIRST_NOISE, 1 + 12 * FIRST_NOISE, 20_001, retstep=True)
    density = np.exp(-(((x - 1) / FIRST_NOISE) ** 2) / 2) / (FIRST_NOISE * math.sqrt(2 * math.pi))
    left = BUDGET - (x - 0.5) / FIRST_NOISE**2
    worst = np.max([_divergence(second, left) for second in seconds], axis=0)
    return float(step * (density @ worst)) <= DELTA


def _least_noise_allowed(allowed: Callable[[Schedule], bool], q: float) -> SampledGaussianRelease:
    low, high = 0.1, 100.0
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if allowed(_schedule(q, middle)) else (middle, high)
    return _schedule(q, high).event


def _divergence(event: SampledGaussianRelease, epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(S) - exp(epsilon) Q(S) for the worst S, with P = (1 - q) N(0, z^2) + q N(1, z^2) and Q = N(0, z^2)."""
    q, z = event.sampling_probability, event.noise_multiplier
    ratio = np.exp(epsilons)
    above = np.maximum(ratio - (1 - q), 1e-300)  # where the ratio is lower, S is everything
    threshold = z * z * np.log(above / q) + 0.5
    return (1 - q - ratio) * ndtr(-threshold / z) + q * ndtr((1 - threshold) / z)


@pytest.mark.parametrize("allows", [_rdp_filter, _sum_filter])
def test_a_filter_keeps_its_budget_whatever_is_chosen_next(allows: Filter) -> None:
    assert keeps_its_budget(allows, CHOICES)


def test_the_pld_of_what_was_run_lets_the_choice_of_the_next_study_exceed_the_budget() -> None:
    assert not keeps_its_budget(_pld_of_what_was_run, CHOICES)


@pytest.mark.parametrize("q", CHOICES)
def test_the_pld_of_what_was_run_keeps_the_budget_where_nothing_is_chosen(q: float) -> None:
    assert keeps_its_budget(_pld_of_what_was_run, [q])
