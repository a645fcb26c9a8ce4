"""Lower bounds on epsilon from the scores of canaries that were in or out by fair coins, in one run of a study.

Three methods, each with a weaker assumption than the one before it and a lower bound for it; ``CHOSEN`` says which of
them is stated first, and was fixed before any audit was run.

- *Line-up* (``line_up_bound``), for gradient canaries. Assumes that under the mechanism as it is claimed each canary's
  score is independent of every other's, and that the mechanism is the study's schedule at *some* noise.
- *Gaussian curve* (``f_dp_bound``; Mahloujifar, Melis and Chaudhuri 2024, "Auditing f-Differential Privacy in One
  Run"). Scores may depend on one another in any way; the trade-off of the whole study is a Gaussian's, or allows less
  at each false-positive rate, as that of sampled releases does beside the Gaussian of their epsilon.
- *One run* (``one_run_bound``; Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run"). Assumes
  nothing but (epsilon, delta).

Guarantee of each: with at least the stated confidence over coins and noise, the bound is no larger than the epsilon of
the mechanism that was run, if that is as the method assumes. Each is one test, one-sided and of one level: nothing is
chosen by looking at the scores, and how many are guessed is a fixed share of the canaries. Independence need hold only
where the mechanism does what is claimed, since a bound above the claim says no more than that it does not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
import scipy  # each part of it is loaded when it is first asked for

from ..privacy.composition import TOLERANCE, least_epsilon
from ..privacy.events import MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER, Schedule
from .line_up import tail

Method = Literal["line-up", "Gaussian curve", "one run"]
# What a canary is, and where it is looked for: a direction, in sums; a text, in an adapter; the same text, in what an
# adapter wrote.
Kind = Literal["gradient", "text", "synthetic notes"]
# Gradients of canaries are orthogonal, and so is the noise on them independent. What texts do to an adapter is not.
CHOSEN: Final[dict[Kind, Method]] = {
    "gradient": "line-up",
    "text": "Gaussian curve",
    "synthetic notes": "Gaussian curve",
}

MOST_OTHERS: Final = 32  # in a line-up: more add little
GUESSED: Final = 0.1  # of the canaries: so many of the highest scores are guessed in, and as many of the lowest out

_TOLERANCE: Final = 1e-4  # relative, of the noise at which the search ends
# Of a bound that is many times the claim, which noise of less than a quarter of the study's shows: an epsilon that is
# certified within a part in a thousand, a hundred times as coarsely as others, and sooner by seconds.
_FAR: Final = 1 / 4
_COARSELY: Final = 100 * TOLERANCE
_MOST_EPSILON: Final = 100.0
_ROUNDING: Final = 1e-12  # so that no product of a quotient leaves the range that noise has


def line_up_bound(
    scores: Sequence[float],
    bits: Sequence[bool],
    foils: Sequence[float] = (),
    *,
    schedule: Schedule,
    delta: float,
    confidence: float,
) -> float:
    """The least epsilon at ``delta`` of ``schedule``, at whatever noise, under which these line-ups are not too good.

    ``line_up_chance`` rises as the noise falls, so that all noise from the largest on that is refused down to the
    bound's is refused by one test: no correction is due. The bound is certified from below at the least noise that is
    refused. 0 where nothing is refused.
    """

    def at(noise_multiplier: float) -> Schedule:
        return replace(schedule, event=replace(schedule.event, noise_multiplier=noise_multiplier))

    def is_refused(noise_multiplier: float) -> bool:
        return line_up_chance(scores, bits, foils, schedule=at(noise_multiplier)) <= 1 - confidence

    factors = (1.0, *(factor for _, factor in schedule.stages))  # all noise is in range, and changes alike
    low = MIN_NOISE_MULTIPLIER / min(factors) * (1 + _ROUNDING)
    high = MAX_NOISE_MULTIPLIER / max(factors) * (1 - _ROUNDING)
    if not is_refused(high):
        return 0.0
    while high > low * (1 + _TOLERANCE):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_refused(middle) else (middle, high)
    is_far = high < _FAR * schedule.event.noise_multiplier
    return least_epsilon(at(high), delta=delta, tolerance=_COARSELY if is_far else TOLERANCE)


def line_up_chance(
    scores: Sequence[float], bits: Sequence[bool], foils: Sequence[float], *, schedule: Schedule
) -> float:
    """At most the chance of line-ups as good as these, if ``schedule`` is what was run: a p-value.

    Each canary that was in (``bits``) is lined up with equally many that were out, or ``foils``, directions that no
    canary has, in the order in which they are given. How many of these score below it is no larger, stochastically,
    than ``line_up.counts_in_line_up`` has it; independent line-ups add up to its convolution. 1 where nobody stands in
    a line-up.
    """
    inside = [score for score, bit in zip(scores, bits, strict=True) if bit]
    outside = [score for score, bit in zip(scores, bits, strict=True) if not bit] + list(foils)
    others = min(MOST_OTHERS, len(outside) // max(1, len(inside)))
    if not inside or not others:
        return 1.0
    line_ups = np.array(outside[: others * len(inside)]).reshape(len(inside), others)
    below = int((line_ups < np.array(inside)[:, None]).sum())
    return tail(schedule, others=others, line_ups=len(inside), count=below)


def f_dp_bound(scores: Sequence[float], bits: Sequence[bool], *, delta: float, confidence: float) -> float:
    """The least epsilon at ``delta`` of a Gaussian trade-off curve under which so many guesses are not too good.

    The highest tenth of the scores is guessed in, the lowest tenth out (``GUESSED``). Validity: under f-DP the masses
    of "right" and "wrong" guesses, given at least so many right ones, obey f at each number of right guesses, whatever
    depends on what; Mahloujifar et al. 2024 follow them from the observed number down to 0. Were its tail above the
    level, both together would come to no more than the share that is guessed; where they exceed it, f is refused.
    """
    guesses, correct = _guessed(scores, bits)
    return _least(lambda epsilon: _refuses_curve(epsilon, len(scores), guesses, correct, delta, 1 - confidence))


def one_run_bound(scores: Sequence[float], bits: Sequence[bool], *, delta: float, confidence: float) -> float:
    """The least epsilon at ``delta`` under which so many guesses are not too good, whatever the mechanism is.

    Guesses are those of ``f_dp_bound``. Validity (Steinke et al. 2023, the main theorem): under (epsilon, 0) the right
    guesses are stochastically no more than binomial, with the chance 1 / (1 + exp(-epsilon)) each, since whoever knows
    the coins and guesses before can guess the next no better; delta adds at most 2 m delta times what the binomial's
    tail gains a guess, at worst.
    """
    guesses, correct = _guessed(scores, bits)
    return _least(lambda epsilon: _chance(epsilon, len(scores), guesses, correct, delta) <= 1 - confidence)


def _guessed(scores: Sequence[float], bits: Sequence[bool]) -> tuple[int, int]:
    """How many are guessed, and how many of these guesses are right. Equal scores stand as they are given."""
    half = int(GUESSED * len(scores))
    order = np.argsort(np.array(scores), kind="stable")
    inside = np.array(bits, dtype=bool)[order]
    return 2 * half, int(inside[len(inside) - half :].sum()) + int((~inside[:half]).sum())


def _chance(epsilon: float, canaries: int, guesses: int, correct: int, delta: float) -> float:
    """At most the chance of so many right guesses under (epsilon, delta)."""
    at_least = scipy.stats.binom.sf(np.arange(correct, -1, -1) - 1, guesses, scipy.special.expit(epsilon))
    gained = (at_least[1:] - at_least[0]) / np.arange(1, correct + 1)
    return min(1.0, float(at_least[0] + 2 * canaries * delta * gained.max(initial=0.0)))


def _refuses_curve(
    epsilon: float, canaries: int, guesses: int, correct: int, delta: float, significance: float
) -> bool:
    """Whether the Gaussian curve of that epsilon bears so many right guesses less than once in 1 / significance."""
    shift = _gaussian_shift(epsilon, delta)
    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for remaining in range(correct - 1, -1, -1):
        more = max(wrong, float(scipy.special.ndtr(scipy.special.ndtri(right) - shift)))
        right = min(1.0, right + remaining / (guesses - remaining) * (more - wrong))
        wrong = more
    return right + wrong > guesses / canaries


def _gaussian_shift(epsilon: float, delta: float) -> float:
    """The mu of the Gaussian curve that is (epsilon, delta): Dong, Roth and Su 2022, Corollary 2.13."""

    def excess(mu: float) -> float:
        above = scipy.special.ndtr(-epsilon / mu + mu / 2)
        return float(above - math.exp(epsilon) * scipy.special.ndtr(-epsilon / mu - mu / 2)) - delta

    return float(scipy.optimize.brentq(excess, 1e-6, 2 * math.sqrt(2 * epsilon) + 20))


def _least(is_refused: Callable[[float], bool]) -> float:
    """The largest epsilon up to 100 that is refused, where those below are as well; 0 where none is."""
    low, high = 0.0, _MOST_EPSILON
    if not is_refused(1e-6):
        return 0.0
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refused(middle) else (low, middle)
    return low
