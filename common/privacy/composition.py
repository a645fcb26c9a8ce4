"""Epsilon of many different releases together: what one site-round after another costs one person.

Guarantee: an upper bound. Every release's pair of distributions is replaced by a discrete one that dominates it; the
discrete losses are convolved up to an error that is bounded and counted; a person added and a person removed are both
composed, and the worse counts. What is cut from a tail becomes the probability of an infinite loss, hence of delta.

The convolution is a product of Fourier transforms, of *tilted* losses: with M(t) = E exp(t L), they have the
probabilities p(l) exp(t l) / M(t) instead of p(l). Most of that mass is near epsilon, so that neither what wraps around
nor the transforms' rounding errors are more than a small part of delta, however small delta is. (The tilt is that of
large deviations; Alghamdi et al. 2023, "The Saddle-Point Method in Differential Privacy".)
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter
from scipy.special import logsumexp, ndtri

from .dominating_pair import Array, DiscreteLoss, DominatingPair
from .events import MIN_NOISE_MULTIPLIER, SampledGaussianRelease, Schedule

TOLERANCE: Final = 5e-4  # of epsilon, relative: what the discretisation may add to it
MANY: Final = 5_000  # distinct releases; noise multipliers of more of them are rounded

_RATIO: Final = 1.0005  # between neighbouring rounded noise multipliers
_CUT: Final = 1e-4  # of delta: on tails that are cut
_WRAPPED: Final = 1e-4  # of delta: on losses above the window
_LAP: Final = 1e-4  # of the tilted mass: on what one lap brings back to epsilon
_ULP: Final = 2.0**-52
_LOG_TILTS: Final = (-7.0, 14.0)
_NODES: Final = 200
_MOST_POINTS: Final = 1 << 22
_LEAST_EPSILON: Final = 1e-3  # below it the tolerance is one of this


def composed_epsilon(schedules: Iterable[Schedule], *, delta: float, tolerance: float = TOLERANCE) -> float:
    """The epsilon at ``delta`` of all the releases of ``schedules`` together, for one person added or removed.

    The schedules are fixed beforehand, and ``delta`` is 1e-12 or more, with what they spend of it on cut draws. The
    result is infinite where nothing could be
    certified. Time grows with the number of *distinct* releases, under a millisecond each. Where there are more
    than 5,000, noise multipliers are rounded down by up to one part in 2,000. That is sound: adding the rest of the
    noise to a release with less of it gives the other. A Gaussian's epsilon thereby grows by up to one part in 1,000.

    Discretisation adds about ``tolerance`` times epsilon at most: in a cell of width h, replacing losses by the cell's
    ends multiplies E exp(t L) by 1 + t (t + 1) h^2 / 8 at most, to second order, so that n releases add at most
    n (t + 1) h^2 / 8 to epsilon, from which h is chosen. Whatever h, the result is never below the true epsilon.
    """
    schedules = list(schedules)
    counts = _pairs(schedules)
    if not counts:
        return 0.0
    delta -= sum(schedule.cut_delta for schedule in schedules)
    if delta <= 0:
        return math.inf
    releases = sum(counts.values())
    deviations = -float(ndtri(_CUT * delta / releases))
    circles, interval = _choose_grid(counts, deviations, delta, tolerance)
    sums = [_LossSum(circle, interval) for circle in circles]
    for pair, count in counts.items():
        for total, loss in zip(sums, pair.discretised(interval, deviations), strict=True):
            total.add(loss, count)
    # The relative error of a probability: a thousand roundings a release, and one a point in the final sums.
    inner_delta = delta * (1 - 1e-9 - 1000 * _ULP * releases)
    return max(0.0, *(total.epsilon(inner_delta) + _misplaced(counts, interval) for total in sums))


def recomputed_epsilon(schedule: Schedule, *, delta: float) -> float:
    """The epsilon of ``schedule`` at ``delta``, as ``accountant.epsilon`` has it, without that function or its library.

    For whoever checks a claim: the two share the events and no more. The result
    is infinite where nothing could be certified.
    """
    return composed_epsilon([schedule], delta=delta)


def _pairs(schedules: Iterable[Schedule]) -> Mapping[DominatingPair, int]:
    """How many times each pair is to be composed."""
    events: Counter[SampledGaussianRelease] = Counter()
    for schedule in schedules:
        events[schedule.event] += schedule.count
    many = len(events) > MANY
    pairs: Counter[DominatingPair] = Counter()
    for event, count in events.items():
        each = replace(event, noise_multiplier=_rounded_down(event.noise_multiplier)) if many else event
        pairs[DominatingPair.of(each)] += count * (event.sites_per_patient if event.trust == "local" else 1)
    return pairs


def _rounded_down(noise_multiplier: float) -> float:
    rounded = _RATIO ** math.floor(math.log(noise_multiplier) / math.log(_RATIO))
    return min(noise_multiplier, max(rounded, MIN_NOISE_MULTIPLIER))


@dataclass(frozen=True)
class _Circle:
    """On what losses are convolved.

    Attributes:
        tilt: the t of exp(t L).
        reach: the difference of losses over which exp(-t L) falls to a negligible part of delta.
        length: the least circumference, in losses, at least twice the reach.
    """

    tilt: float
    reach: float
    length: float


class _LossSum:
    """The sum of independent discrete losses, held as the Fourier transform of its tilted distribution."""

    def __init__(self, circle: _Circle, interval: float) -> None:
        self._tilt = circle.tilt
        self._reach = circle.reach
        self._interval = interval
        self._size = 1 << max(1, math.ceil(math.log2(circle.length / interval)))
        self._transform = np.ones(self._size // 2 + 1, dtype=np.complex128)
        self._log_moment = 0.0
        self._infinite = 0.0
        self._count = 0

    def add(self, loss: DiscreteLoss, count: int) -> None:
        """Compose ``loss`` with what is there, ``count`` times."""
        indices = loss.first + np.arange(len(loss.pmf))
        highest = self._interval * float(indices[np.flatnonzero(loss.pmf)[-1]])
        tilted = loss.pmf * np.exp(np.minimum(self._tilt * (self._interval * indices - highest), 0.0))
        total = float(tilted.sum())
        transform = np.fft.rfft(np.bincount(indices % self._size, tilted / total, self._size))
        self._transform *= transform if count == 1 else transform**count
        self._log_moment += count * (math.log(total) + self._tilt * highest)
        self._infinite += count * loss.infinite
        self._count += count

    def epsilon(self, delta: float) -> float:
        """An upper bound on the least epsilon whose hockey-stick divergence is at most ``delta``.

        The window of losses ends below ``top``. Those from there on have wrapped around as lower ones, so that all
        their probability is added to the divergence. Those below the circle have wrapped as higher ones, which only
        adds to it.
        """
        h, tilt = self._interval, self._tilt
        top = math.ceil((self._log_moment / tilt + self._reach) / h)
        indices = np.arange(top - math.floor(2 * self._reach / h), top)
        if not len(indices):  # one cell is wider than the window
            return math.inf
        losses = h * indices
        tilted = np.maximum(np.fft.irfft(self._transform, self._size)[indices % self._size], 0.0)
        untilt = np.exp(self._log_moment - tilt * losses)
        at_least = np.cumsum((tilted * untilt)[::-1])
        # delta(l) = (1 - exp(-h)) P(L >= l + h) + exp(-h) delta(l + h), from delta = 0 at the last loss of the window
        divergences = np.zeros(len(losses))
        divergences[-2::-1] = lfilter([-math.expm1(-h)], [1.0, -math.exp(-h)], at_least[:-1])
        bounds = divergences + untilt * self._rounding_error() + self._probability_above(h * top) + self._infinite
        if bounds[-1] > delta:
            return math.inf
        at = int(np.argmax(bounds <= delta))
        if at == 0:
            return float(losses[0])
        # Between two multiples of h the divergence is linear in exp(epsilon), and the rest is below its chord.
        part = (bounds[at - 1] - delta) / (bounds[at - 1] - bounds[at])
        return float(losses[at - 1]) + math.log1p(part * math.expm1(h))

    def _probability_above(self, loss: float) -> float:
        """At least the probability of a sum of ``loss`` or more (Chernoff)."""
        return math.exp(self._log_moment - self._tilt * loss)

    def _rounding_error(self) -> float:
        """What the transforms' rounding may hide from the divergence at e, over exp(log M - tilt * e).

        A transform of size 2^k, with the product after it, errs by 5 k ulp of the Euclidean norm at most (Higham 2002,
        Theorem 24.2, has less than 3.5 k). No factor exceeds 1 and no tilted distribution has a norm above 1, so the
        result errs by count * 5 k ulp in norm. The divergence weighs its entry at e + s by exp(-tilt s) (1 - exp(-s)),
        at most exp(-tilt s) s, and is wrong by the product of the two norms at most (Cauchy and Schwarz).
        """
        error = 5 * math.log2(self._size) * _ULP * (self._count + 1)
        decay = 2 * self._tilt * self._interval
        squared_weights = self._interval**2 * math.exp(-decay) * (1 + math.exp(-decay)) / (-math.expm1(-decay)) ** 3
        return error * math.sqrt(squared_weights)


def _misplaced(counts: Mapping[DominatingPair, int], interval: float) -> float:
    """What rounding errors in the cells may hide from epsilon, to first order.

    Twenty roundings of a tail probability T move 20 T ulp / h over a cell, as would moving all losses near it by
    20 (T / density) ulp / h. In a Gaussian, T / density is at most 1.3 deviations, over which the loss rises by 1.3
    times the pair's steepness.
    """
    return sum(count * 26 * _ULP * pair.steepness / interval for pair, count in counts.items())


def _choose_grid(
    counts: Mapping[DominatingPair, int], deviations: float, delta: float, tolerance: float
) -> tuple[list[_Circle], float]:
    """A circle for a person removed and one for a person added, and the interval. Soundness rests on no part of it."""
    times = np.fromiter(counts.values(), dtype=np.float64)
    losses, log_removed, log_added = np.empty((3, len(counts), _NODES))
    for row, pair in enumerate(counts):
        x = np.linspace(*pair.span(deviations), _NODES)
        losses[row] = pair.loss(x)
        log_added[row] = -((x / pair.noise_multiplier) ** 2) / 2
    log_removed[:] = log_added + losses
    circles, intervals = [], []
    for log_density, signed in ((log_removed, losses), (log_added, -losses)):
        log_density -= logsumexp(log_density, axis=1, keepdims=True)
        log_moment = functools.partial(_log_moment, log_density, signed, times)
        tilt, epsilon = _best_tilt(log_moment, delta)
        reach = -math.log(_WRAPPED * delta) / tilt
        circles.append(_Circle(tilt, reach, max(2 * reach, _length(log_moment, tilt))))
        squared = 8 * tolerance * epsilon / (times.sum() * (tilt + 1))
        intervals.append(min(math.sqrt(squared), 0.1 / tilt))
    finest = max(circle.length for circle in circles) / _MOST_POINTS
    return circles, max(finest, min(intervals))


def _log_moment(log_density: Array, losses: Array, times: Array, tilt: float) -> float:
    """log M(tilt) of the sum of n losses, the i-th ``times[i]`` times, by quadrature over [n, nodes]."""
    return float(times @ logsumexp(log_density + tilt * losses, axis=1))


def _best_tilt(log_moment: Callable[[float], float], delta: float) -> tuple[float, float]:
    """A tilt near the saddle point, and about the epsilon.

    They are the best order, less one, and the value of the Renyi bound of Canonne, Kamath and Steinke 2020,
    Proposition 12. Where losses are bounded the best order may be infinite; one is high enough where log(1 / delta)
    over it is a thousandth of epsilon.
    """

    def renyi(log_tilt: float) -> float:
        tilt = math.exp(log_tilt)
        return (log_moment(tilt) - math.log(delta * (tilt + 1))) / tilt + math.log(tilt / (tilt + 1))

    best = minimize_scalar(renyi, bounds=_LOG_TILTS, method="bounded", options={"xatol": 0.02})
    epsilon = max(float(best.fun), _LEAST_EPSILON)
    return min(math.exp(best.x), -1000 * math.log(delta) / epsilon), epsilon


def _length(log_moment: Callable[[float], float], tilt: float) -> float:
    """From below epsilon to where tilted losses become negligible: one lap brings little of them back to epsilon.

    log M(t) / t is below the tilted mean, near which epsilon is. The tilted tail is bounded like any tail by moments of
    a higher tilt (Chernoff).
    """
    here = log_moment(tilt)
    factors = (1.1, 1.3, 1.6, 2.0, 3.0, 5.0)
    ends = [(log_moment(factor * tilt) - here - math.log(_LAP)) / ((factor - 1) * tilt) for factor in factors]
    return min(ends) - here / tilt
